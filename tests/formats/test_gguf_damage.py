"""GGUF reading: a typed error for every kind of damage, without reading or allocating what damaged counts ask for."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from gguf_files import Patch, write
from mutations import LIMIT_BYTES, limits
from work_time import work_below

from vkllm.errors import ModelFileError, ModelNotFound, UnsupportedModel
from vkllm.formats.gguf import ModelFile, read_tensor


def test_a_missing_file_is_model_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no\.gguf: no such file"):
        ModelFile.open(tmp_path / "no.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04" + bytes(100), bytes(4096)])
def test_not_a_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"other\.gguf.*letters GGUF"):
        ModelFile.open(path)


def test_a_folder_is_not_a_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="directory"):
        ModelFile.open(tmp_path)


@pytest.mark.parametrize("version", [0xFFFF, 4, 1])
def test_other_versions_are_named(patch: Patch, version: int) -> None:
    with pytest.raises(ModelFileError, match=rf"version {version},.*2 and 3"):
        patch.put(4, "<I", version).open()


def test_a_big_endian_file_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match="big-endian"):
        ModelFile.open(tmp_path / "big.gguf")


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_file_cut_short(tmp_path: Path, percent: int) -> None:
    """Wherever a model's file is cut, in the header or in the weights, the error says so."""
    path = write(tmp_path / "cut.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * percent // 100])
    with pytest.raises(ModelFileError, match=r"cut\.gguf.*(ends inside its header|the file ends at)"):
        ModelFile.open(path)


def test_a_file_cut_in_its_last_tensor_names_the_tensor(patch: Patch) -> None:
    del patch.data[-32:]
    with pytest.raises(ModelFileError, match=r"'blk\.0\.ffn_gate_exps\.weight' reaches to byte \d+.*ends at \d+"):
        patch.open()


@pytest.mark.parametrize("offset", [1 << 20, 1 << 40, (1 << 64) - 32])
def test_a_tensor_offset_past_the_end(patch: Patch, offset: int) -> None:
    behind = patch.behind("output_norm.weight")
    with pytest.raises(ModelFileError, match=r"'output_norm\.weight' reaches to byte"):
        patch.put(behind + 4 + 8 + 4, "<Q", offset).open()


def test_a_misaligned_tensor_offset(patch: Patch) -> None:
    behind = patch.behind("output_norm.weight")
    with pytest.raises(ModelFileError, match=r"'output_norm\.weight'.*not aligned"):
        patch.put(behind + 4 + 8 + 4, "<Q", 4).open()


def test_overlapping_tensors(patch: Patch) -> None:
    behind = patch.behind("output_norm.weight")
    with pytest.raises(ModelFileError, match="overlap"):
        patch.put(behind + 4 + 8 + 4, "<Q", 32).open()


@pytest.mark.parametrize("size", [0, 63])
def test_impossible_shapes(patch: Patch, size: int) -> None:
    behind = patch.behind("token_embd.weight")
    with pytest.raises(ModelFileError, match=r"'token_embd\.weight' has the shape .* impossible in Q8_0"):
        patch.put(behind + 4, "<Q", size).open()


def test_shapes_whose_product_passes_64_bits(patch: Patch) -> None:
    behind = patch.behind("token_embd.weight")
    patch.put(behind + 4, "<Q", 1 << 40).put(behind + 12, "<Q", 1 << 40)
    with pytest.raises(ModelFileError, match="reaches to byte"):
        patch.open()


@pytest.mark.parametrize("n_dims", [0, 5, 0xFFFFFFFF])
def test_absurd_numbers_of_dimensions(patch: Patch, n_dims: int) -> None:
    with pytest.raises(ModelFileError, match=f"tensor of {n_dims} dimensions"):
        patch.put(patch.behind("token_embd.weight"), "<I", n_dims).open()


def test_two_tensors_of_one_name(patch: Patch) -> None:
    at = patch.behind("blk.0.attn_k.weight") - len("k.weight")
    patch.data[at : at + 1] = b"q"
    with pytest.raises(ModelFileError, match=r"two tensors have the name 'blk\.0\.attn_q\.weight'"):
        patch.open()


def test_two_fields_of_one_key(patch: Patch) -> None:
    at = patch.behind("test.float32") - len("float32")
    patch.data[at : at + 7] = b"float64"
    with pytest.raises(ModelFileError, match=r"Duplicate test\.float64"):
        patch.open()


@pytest.mark.parametrize("type_id", [4, 36, 9999])
def test_an_unknown_quantization_names_tensor_and_type(patch: Patch, type_id: int) -> None:
    behind = patch.behind("output_norm.weight")
    with pytest.raises(UnsupportedModel, match=rf"'output_norm\.weight' has quantization type {type_id},"):
        patch.put(behind + 4 + 8, "<I", type_id).open()


@pytest.mark.parametrize("type_id", [13, 0xFFFFFFFF])
def test_metadata_of_unknown_type(patch: Patch, type_id: int) -> None:
    with pytest.raises(ModelFileError, match=f"{type_id} is not a valid GGUFValueType"):
        patch.put(patch.behind("test.int32"), "<I", type_id).open()


def test_arrays_of_arrays(patch: Patch) -> None:
    with pytest.raises(ModelFileError, match="array of arrays"):
        patch.put(patch.behind("test.integers") + 4, "<I", int(gguf.GGUFValueType.ARRAY)).open()


@pytest.mark.parametrize("alignment", [0, 48])
def test_an_alignment_that_is_no_power_of_two(patch: Patch, alignment: int) -> None:
    with pytest.raises(ModelFileError, match="alignment"):
        patch.put(patch.behind("general.alignment") + 4, "<I", alignment).open()


@pytest.mark.parametrize("offset", [8, 16])
@pytest.mark.parametrize("count", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_absurd_counts_of_tensors_or_fields(patch: Patch, offset: int, count: int) -> None:
    with pytest.raises(ModelFileError, match="header counts"):
        patch.put(offset, "<Q", count).open()


@pytest.mark.parametrize("offset", [8, 16])
def test_counts_one_too_high(patch: Patch, offset: int) -> None:
    with pytest.raises(ModelFileError):
        patch.put(offset, "<Q", patch.data[offset] + 1).open()


@pytest.mark.parametrize("key", ["test.strings", "test.integers"])
@pytest.mark.parametrize("count", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_absurd_lengths_of_arrays(patch: Patch, key: str, count: int) -> None:
    with pytest.raises(ModelFileError, match="header"):
        patch.put(patch.behind(key) + 8, "<Q", count).open()


@pytest.mark.parametrize("length", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_absurd_lengths_of_strings(patch: Patch, length: int) -> None:
    for offset in (24, patch.behind("test.string") + 4, patch.behind("test.strings") + 16):
        damaged = Patch(patch.path, patch.path) if patch.path.exists() else patch
        with pytest.raises(ModelFileError, match="header"):
            damaged.put(offset, "<Q", length).open()


def test_a_count_before_a_long_run_of_zeros_ends_soon(patch: Patch) -> None:
    """What a preallocated, unfinished download looks like: empty strings without end."""
    patch.put(patch.behind("test.strings") + 8, "<Q", 1 << 33)
    patch.data[patch.behind("test.strings") + 16 :] = bytes(64 << 20)
    patch.path.write_bytes(patch.data)
    with work_below(1.0), pytest.raises(ModelFileError, match="array of 8589934592 strings"):
        ModelFile.open(patch.path)


def test_a_key_as_long_as_a_large_file_is_not_read(patch: Patch) -> None:
    patch.put(24, "<Q", 1 << 30)
    patch.path.write_bytes(patch.data)
    with patch.path.open("r+b") as file:
        file.truncate(2 << 30)  # A sparse file: it takes no room on the disk.
    with limits(1.0, LIMIT_BYTES), pytest.raises(ModelFileError, match="a string of 1073741824 bytes"):
        ModelFile.open(patch.path)


def test_a_tensor_that_is_not_there_is_named(sound: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no tensor 'output\.weight'"):
        ModelFile.open(sound).raw("output.weight")


def test_a_file_that_shrank_after_opening_is_a_typed_error(patch: Patch) -> None:
    info = patch.open().tensors["blk.0.ffn_gate_exps.weight"]
    patch.path.write_bytes(patch.data[:-32])
    with pytest.raises(ModelFileError, match=r"'blk\.0\.ffn_gate_exps\.weight' can no longer be read"):
        read_tensor(patch.path, info)
    patch.path.unlink()
    with pytest.raises(ModelFileError, match="can no longer be read"):
        read_tensor(patch.path, info)
