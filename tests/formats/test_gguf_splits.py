"""Split models: any part opens the whole, and parts that do not belong together are refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import gguf
import numpy as np
import pytest

from vkllm.errors import ModelFileError
from vkllm.formats.gguf import ModelFile, read_tensor
from vkllm.formats.splits import part_names, stem

NAMES = ["a.weight", "b.weight", "c.weight", "d.weight", "e.weight"]
PARTS = [["a.weight", "b.weight"], ["c.weight"], ["d.weight", "e.weight"]]


def values(name: str) -> np.ndarray:
    return np.random.default_rng(sum(name.encode())).normal(size=(3, 32)).astype(np.float32)


def write_part(
    path: Path, number: int, names: list[str], *, count: int = 3, n_tensors: int = len(NAMES), fields: bool = True
) -> Path:
    """A part as llama-gguf-split writes it: only the first has the model's metadata."""
    writer = gguf.GGUFWriter(path, "llama")
    if fields and number == 0:
        writer.add_string("test.string", "of the first part")
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", n_tensors)
    for name in names:
        writer.add_tensor(name, values(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A model of five tensors in three files."""
    return [
        write_part(tmp_path / f"model-{number + 1:05}-of-00003.gguf", number, names)
        for number, names in enumerate(PARTS)
    ]


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_opens_the_whole_model(parts: list[Path], given: int) -> None:
    model = ModelFile.open(parts[given])
    assert model.paths == parts and model.path == parts[0]
    assert model.metadata.string("test.string") == "of the first part"
    assert list(model.tensors) == NAMES
    for part, names in zip(parts, PARTS, strict=True):
        for name in names:
            info = model.tensors[name]
            assert info.path == part
            assert np.array_equal(model.raw(name).view(np.float32), values(name).reshape(-1))
            # The engine's process has the entry from a pickle, and the path of any part.
            mapped = read_tensor(parts[given], pickle.loads(pickle.dumps(info)))
            assert np.array_equal(mapped, model.raw(name))


def test_what_the_gguf_package_splits_is_read_as_one(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    writer.add_string("test.string", "of the first part")
    for name in NAMES:
        writer.add_tensor(name, values(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = ModelFile.open(tmp_path / "model-00003-of-00003.gguf")
    assert len(model.paths) == 3 and model.metadata.string("test.string") == "of the first part"
    assert set(model.tensors) == set(NAMES)
    for name in NAMES:
        assert np.array_equal(model.raw(name).view(np.float32), values(name).reshape(-1))


def test_a_first_part_without_tensors_is_sound(tmp_path: Path) -> None:
    first = write_part(tmp_path / "m-00001-of-00002.gguf", 0, [], count=2)
    write_part(tmp_path / "m-00002-of-00002.gguf", 1, NAMES, count=2)
    assert list(ModelFile.open(first).tensors) == NAMES


def test_a_model_of_one_part_is_an_ordinary_file(tmp_path: Path) -> None:
    path = write_part(tmp_path / "any-name.gguf", 0, NAMES, count=1)
    model = ModelFile.open(path)
    assert model.paths == [path]
    assert {info.path for info in model.tensors.values()} == {None}


@pytest.mark.parametrize(("missing", "given"), [(0, 1), (1, 0), (2, 0)])
def test_a_missing_part_is_named(parts: list[Path], missing: int, given: int) -> None:
    parts[missing].unlink()
    with pytest.raises(ModelFileError, match=rf"0000{missing + 1}-of-00003\.gguf: this part .* is missing; all 3"):
        ModelFile.open(parts[given])


def test_a_renamed_part_is_refused_with_the_names_that_work(parts: list[Path], tmp_path: Path) -> None:
    renamed = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match=r"one of 3 parts .* NAME-00001-of-00003\.gguf"):
        ModelFile.open(renamed)


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 2},  # Another part under this one's name.
        {"count": 4},
        {"n_tensors": 7},
    ],
)
def test_a_part_of_another_model_is_refused(parts: list[Path], changes: dict[str, int]) -> None:
    arguments: dict[str, int] = {"number": 1} | changes
    write_part(parts[1], arguments.pop("number"), PARTS[1], **arguments)
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003\.gguf: this is not part 2 of 3 of the model in"):
        ModelFile.open(parts[0])


def test_a_file_that_is_no_part_among_the_parts_is_refused(parts: list[Path]) -> None:
    writer = gguf.GGUFWriter(parts[1], "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match="this is not part 2 of 3"):
        ModelFile.open(parts[0])


def test_a_tensor_in_two_parts_is_refused(parts: list[Path]) -> None:
    write_part(parts[1], 1, ["a.weight"])
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003\.gguf: the tensor 'a\.weight' is in another part"):
        ModelFile.open(parts[0])


def test_parts_with_too_few_tensors_are_refused(parts: list[Path]) -> None:
    write_part(parts[2], 2, ["d.weight"])
    with pytest.raises(ModelFileError, match="the 3 parts hold 4 tensors, but the model has 5"):
        ModelFile.open(parts[0])


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_damage_in_any_part_names_that_part(parts: list[Path], damaged: int) -> None:
    parts[damaged].write_bytes(parts[damaged].read_bytes()[:-32])
    for given in parts:
        with pytest.raises(ModelFileError, match=rf"model-0000{damaged + 1}-of-00003\.gguf: not a sound GGUF"):
            ModelFile.open(given)


def test_names_of_parts() -> None:
    assert part_names("m-00002-of-00002.gguf") == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert part_names("a/b/m-00001-of-00001.gguf") == ["a/b/m-00001-of-00001.gguf"]
    for name in ("m.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf", "-00001-of-00002.gguf"):
        assert part_names(name) == [name]
    assert stem("m-00002-of-00002.gguf") == stem("m.gguf") == "m"
