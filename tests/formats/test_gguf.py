"""GGUF reading: typed metadata, the tensor table, and a typed error for every kind of damage."""

from __future__ import annotations

import pickle
import random
import signal
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import gguf
import numpy as np
import pytest

from vkllm.errors import ModelFileError, ModelNotFound, UnsupportedModel, VkllmError
from vkllm.formats.gguf import ModelFile, TensorInfo, map_tensor

N_MUTATIONS = 200
MUTATION_LIMIT_S = 2.0
MUTATION_LIMIT_BYTES = 64 << 20

# Name, shape in numpy order, format.
TENSORS: list[tuple[str, tuple[int, ...], str]] = [
    ("token_embd.weight", (6, 64), "Q8_0"),
    ("output_norm.weight", (64,), "F32"),
    ("blk.0.attn_q.weight", (3, 64), "Q4_0"),
    ("blk.0.attn_k.weight", (2, 64), "Q4_1"),
    ("blk.0.ffn_up.weight", (5, 32), "F16"),
    ("blk.0.ffn_down.weight", (5, 7), "BF16"),
    ("blk.0.ffn_gate.weight", (2, 256), "Q4_K"),
    ("blk.0.ffn_gate_exps.weight", (2, 3, 32), "Q8_0"),
]
TOKENS = ["<s>", "a", "", "ü", "▁Größe", "😀"]


def tensor_bytes(name: str, shape: tuple[int, ...], format: str) -> np.ndarray:
    """Bytes of a tensor's size, different for each name: uint8 [..., bytes a row]."""
    n_values, values_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]]
    rng = np.random.default_rng(sum(name.encode()))
    return rng.integers(0, 256, (*shape[:-1], shape[-1] // n_values * values_bytes), dtype=np.uint8)


def write(path: Path, *, alignment: int = 32, tensors: bool = True) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_string("test.string", "Grüße")
    writer.add_uint8("test.uint8", 200)
    writer.add_int32("test.int32", -5)
    writer.add_uint64("test.uint64", 1 << 40)
    writer.add_float32("test.float32", 0.5)
    writer.add_float64("test.float64", 0.1)
    writer.add_bool("test.true", True)
    writer.add_bool("test.false", False)
    writer.add_array("test.strings", TOKENS)
    writer.add_array("test.integers", [3, -1, 7])
    writer.add_array("test.numbers", [0.25, -1.5])
    for name, shape, format in TENSORS if tensors else []:
        kind = gguf.GGMLQuantizationType[format]
        data = tensor_bytes(name, shape, format)
        if format in ("F32", "F16"):
            data = data.view(np.float32 if format == "F32" else np.float16)
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "sound.gguf")


class Patch:
    """Writes a damaged copy of a sound file."""

    def __init__(self, source: Path, path: Path) -> None:
        self.data = bytearray(source.read_bytes())
        self.path = path

    def behind(self, name: str) -> int:
        """The offset behind the string `name` in the header: a field's type, or a tensor's number of dimensions."""
        needle = struct.pack("<Q", len(name)) + name.encode()
        assert self.data.count(needle) == 1, name
        return self.data.index(needle) + len(needle)

    def put(self, offset: int, layout: str, value: int) -> Patch:
        struct.pack_into(layout, self.data, offset, value)
        return self

    def open(self) -> ModelFile:
        self.path.write_bytes(self.data)
        return ModelFile.open(self.path)


@pytest.fixture
def patch(sound: Path, tmp_path: Path) -> Patch:
    return Patch(sound, tmp_path / "damaged.gguf")


# --- sound files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_give_the_written_values(patch: Patch, version: int) -> None:
    model = patch.put(4, "<I", version).open()
    metadata = model.metadata
    assert metadata.path == model.path == patch.path
    assert metadata.string("general.architecture") == "llama"
    assert metadata.string("test.string") == "Grüße"
    assert metadata.integer("test.uint8") == 200
    assert metadata.integer("test.int32") == -5
    assert metadata.integer("test.uint64") == 1 << 40
    assert metadata.number("test.float32") == 0.5
    assert metadata.number("test.float64") == 0.1
    assert metadata.number("test.int32") == -5.0
    assert metadata.boolean("test.true") is True
    assert metadata.boolean("test.false") is False
    assert metadata.strings("test.strings") == TOKENS
    assert metadata.integers("test.integers") == [3, -1, 7]
    assert metadata.numbers("test.numbers") == [0.25, -1.5]
    assert metadata.numbers("test.integers") == [3.0, -1.0, 7.0]
    assert {type(value) for value in metadata.integers("test.integers")} == {int}


@pytest.mark.parametrize("alignment", [32, 256])
def test_tensor_bytes_are_the_written_ones(tmp_path: Path, alignment: int) -> None:
    model = ModelFile.open(write(tmp_path / "model.gguf", alignment=alignment))
    assert list(model.tensors) == [name for name, _, _ in TENSORS]
    for name, shape, format in TENSORS:
        info = model.tensors[name]
        expected = tensor_bytes(name, shape, format).reshape(-1)
        assert (info.name, info.shape, info.format, info.n_bytes) == (name, shape, format, expected.size)
        assert info.offset % alignment == 0
        assert np.array_equal(model.raw(name), expected)
        # The engine's process gets the entry by pickle and maps the tensor itself.
        assert np.array_equal(map_tensor(model.path, pickle.loads(pickle.dumps(info))), expected)


def test_tensor_views_are_not_copies_and_cannot_be_written(sound: Path) -> None:
    view = ModelFile.open(sound).raw("token_embd.weight")
    assert view.dtype == np.uint8 and view.ndim == 1
    assert not view.flags.owndata and not view.flags.writeable


def test_a_vocabulary_without_tensors_opens(tmp_path: Path) -> None:
    model = ModelFile.open(write(tmp_path / "vocab.gguf", tensors=False))
    assert model.tensors == {}
    assert model.metadata.strings("test.strings") == TOKENS


def test_a_large_vocabulary_opens_fast(tmp_path: Path) -> None:
    tokens = [f"token {i}" for i in range(400_000)]
    writer = gguf.GGUFWriter(tmp_path / "large.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [1] * len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    start = time.perf_counter()
    model = ModelFile.open(tmp_path / "large.gguf")
    # 0.05 s on a free core; GGUFReader alone takes 10 s.
    assert time.perf_counter() - start < 1.0
    assert model.metadata.strings("tokenizer.ggml.tokens") == tokens
    assert len(model.metadata.integers("tokenizer.ggml.token_type")) == len(tokens)


# --- typed reads -----------------------------------------------------------------------------------------------------


def test_metadata_lists_the_keys_of_the_file_only(sound: Path) -> None:
    metadata = ModelFile.open(sound).metadata
    assert "test.string" in metadata and "test.missing" not in metadata
    assert "GGUF.version" not in metadata
    assert len(list(metadata)) == len(metadata) == 13


def test_is_array_tells_one_value_from_one_a_layer(sound: Path) -> None:
    metadata = ModelFile.open(sound).metadata
    assert metadata.is_array("test.integers")
    assert not metadata.is_array("test.int32") and not metadata.is_array("test.missing")


def test_missing_keys_give_the_default_or_name_file_and_key(sound: Path) -> None:
    metadata = ModelFile.open(sound).metadata
    assert metadata.string("test.missing", "x") == "x"
    assert metadata.string("test.missing", None) is None
    assert metadata.integer("test.missing", 4) == 4
    assert metadata.number("test.missing", 1.5) == 1.5
    assert metadata.boolean("test.missing", True) is True
    for read in (metadata.string, metadata.integer, metadata.number, metadata.boolean, metadata.strings):
        with pytest.raises(ModelFileError, match=r"sound\.gguf.*'test\.missing'.*missing"):
            read("test.missing")


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("string", "test.uint8"),
        ("string", "test.strings"),
        ("integer", "test.float32"),
        ("integer", "test.true"),
        ("integer", "test.integers"),
        ("number", "test.string"),
        ("boolean", "test.uint8"),
        ("strings", "test.string"),
        ("strings", "test.integers"),
        ("integers", "test.numbers"),
        ("integers", "test.int32"),
        ("numbers", "test.strings"),
    ],
)
def test_a_wrong_type_names_file_and_key(sound: Path, method: str, key: str) -> None:
    with pytest.raises(ModelFileError, match=rf"sound\.gguf.*{key!r}"):
        getattr(ModelFile.open(sound).metadata, method)(key)


def test_text_that_is_not_utf8_is_an_error_of_its_key_alone(patch: Patch) -> None:
    patch.data[patch.behind("test.string") + 12] = 0xFF
    patch.data[patch.behind("test.strings") + 24] = 0xFF
    metadata = patch.open().metadata
    with pytest.raises(ModelFileError, match=r"'test\.string'.*UTF-8"):
        metadata.string("test.string")
    with pytest.raises(ModelFileError, match=r"'test\.strings'.*item 0.*UTF-8"):
        metadata.strings("test.strings")
    assert metadata.integer("test.uint8") == 200


# --- damage ----------------------------------------------------------------------------------------------------------


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
    start = time.perf_counter()
    with pytest.raises(ModelFileError, match="array of 8589934592 strings"):
        patch.open()
    assert time.perf_counter() - start < 1.0


def test_a_key_as_long_as_a_large_file_is_not_read(patch: Patch) -> None:
    patch.put(24, "<Q", 1 << 30)
    patch.path.write_bytes(patch.data)
    with patch.path.open("r+b") as file:
        file.truncate(2 << 30)  # A sparse file: it takes no room on the disk.
    with limits(1.0, MUTATION_LIMIT_BYTES), pytest.raises(ModelFileError, match="a string of 1073741824 bytes"):
        ModelFile.open(patch.path)


def test_a_part_of_a_split_model_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "big-00001-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match="one of 3 parts of a split model"):
        ModelFile.open(path)


def test_a_tensor_that_is_not_there_is_named(sound: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no tensor 'output\.weight'"):
        ModelFile.open(sound).raw("output.weight")


def test_a_file_that_shrank_after_opening_is_a_typed_error(patch: Patch) -> None:
    info = patch.open().tensors["blk.0.ffn_gate_exps.weight"]
    patch.path.write_bytes(patch.data[:-32])
    with pytest.raises(ModelFileError, match=r"'blk\.0\.ffn_gate_exps\.weight' can no longer be read"):
        map_tensor(patch.path, info)
    patch.path.unlink()
    with pytest.raises(ModelFileError, match="can no longer be read"):
        map_tensor(patch.path, info)


# --- random damage ---------------------------------------------------------------------------------------------------


class TimeLimit(BaseException):
    """Not an Exception, so that no handler under test swallows it."""


@contextmanager
def limits(seconds: float, n_bytes: int) -> Iterator[None]:
    """Fails what runs longer or allocates more at its peak."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeLimit(f"ran longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < n_bytes, f"allocated {peak} bytes"
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_everything(path: Path) -> bool:
    """Opens a file and uses all of it; whether it opened. Anything but a typed error is a defect."""
    try:
        model = ModelFile.open(path)
    except VkllmError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return False
    metadata = model.metadata
    for key in metadata:
        n_values = 0
        for read in (
            metadata.string,
            metadata.integer,
            metadata.number,
            metadata.boolean,
            metadata.strings,
            metadata.integers,
            metadata.numbers,
        ):
            try:
                read(key)
                n_values += 1
            except ModelFileError as error:
                assert key in str(error) or repr(key) in str(error)
        assert n_values <= 2
    for name, info in model.tensors.items():
        assert isinstance(info, TensorInfo)
        raw = model.raw(name)
        assert raw.size == info.n_bytes > 0
        assert np.array_equal(raw, map_tensor(path, info))
    return True


def mutate(data: bytes, header_bytes: int, rng: random.Random) -> bytes:
    """One to three random changes within the header."""
    mutated = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(min(header_bytes, len(mutated)))
        match rng.randrange(7):
            case 0:
                mutated[at] ^= 1 << rng.randrange(8)
            case 1:
                mutated[at] = rng.randrange(256)
            case 2:
                value = rng.choice([0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
                mutated[at : at + 4] = struct.pack("<I", value)
            case 3:
                value = rng.choice([0, 1, 1 << 20, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
                mutated[at : at + 8] = struct.pack("<Q", value)
            case 4:
                del mutated[at : at + rng.randint(1, 16)]
            case 5:
                mutated[at:at] = rng.randbytes(rng.randint(1, 16))
            case 6:
                mutated[at : at + 32] = mutated[at + 32 : at + 64]
    if rng.random() < 0.1:
        del mutated[rng.randrange(len(mutated)) :]
    return bytes(mutated)


def run_mutations(
    sound: Path, path: Path, read: Callable[[Path], bool], n: int = N_MUTATIONS, seconds: float = MUTATION_LIMIT_S
) -> tuple[int, list[str]]:
    """How many of the mutated files opened, and every failure of `read` with the number of its mutation."""
    data = sound.read_bytes()
    header_bytes = min(info.offset for info in ModelFile.open(sound).tensors.values())
    n_opened = 0
    failures = []
    for number in range(n):
        path.write_bytes(mutate(data, header_bytes, random.Random(number)))
        try:
            with limits(seconds, MUTATION_LIMIT_BYTES):
                n_opened += read(path)
        except (Exception, TimeLimit) as error:
            failures.append(f"mutation {number}: {type(error).__name__}: {error}")
    return n_opened, failures


def test_random_damage_gives_a_typed_error_or_a_correct_load(sound: Path, tmp_path: Path) -> None:
    n_opened, failures = run_mutations(sound, tmp_path / "mutated.gguf", read_everything)
    assert failures == []
    # Both outcomes have to occur, or the mutations are too harmless or too harsh to prove anything.
    assert 15 < n_opened < N_MUTATIONS - 50


def test_the_mutation_harness_sees_other_exceptions_hangs_and_huge_allocations(sound: Path, tmp_path: Path) -> None:
    def plain_reader(path: Path) -> bool:
        gguf.GGUFReader(path)
        return True

    def endless(_path: Path) -> bool:
        while True:
            pass

    def greedy(_path: Path) -> bool:
        return bool(np.zeros(MUTATION_LIMIT_BYTES + 1, np.uint8).size)

    path = tmp_path / "mutated.gguf"
    assert any("ValueError" in failure for failure in run_mutations(sound, path, plain_reader, 30, 0.2)[1])
    assert "TimeLimit" in run_mutations(sound, path, endless, 1, 0.1)[1][0]
    assert "allocated" in run_mutations(sound, path, greedy, 1)[1][0]
