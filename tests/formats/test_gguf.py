"""GGUF reading: typed metadata and the tensor table of sound files."""

from __future__ import annotations

import pickle
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import TENSORS, TOKENS, Patch, tensor_bytes, write
from work_time import work_below

from vkllm.errors import ModelFileError
from vkllm.formats.gguf import ModelFile, read_tensor


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
        # The engine's process gets the entry by pickle and reads the tensor itself.
        assert np.array_equal(read_tensor(model.path, pickle.loads(pickle.dumps(info))), expected)


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
    with work_below(1.0):  # 0.05 s on a free core; GGUFReader alone takes 10 s
        model = ModelFile.open(tmp_path / "large.gguf")
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
