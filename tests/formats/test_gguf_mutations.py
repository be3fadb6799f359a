"""GGUF reading: whatever is changed in a file at random, the reader raises a typed error or reads it right."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from mutations import LIMIT_BYTES, N_MUTATIONS, run_mutations

from vkllm.errors import ModelFileError, VkllmError
from vkllm.formats.gguf import ModelFile, TensorInfo, read_tensor


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
        assert np.array_equal(raw, read_tensor(path, info))
    return True


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
        return bool(np.zeros(LIMIT_BYTES + 1, np.uint8).size)

    path = tmp_path / "mutated.gguf"
    assert any("ValueError" in failure for failure in run_mutations(sound, path, plain_reader, 30, 0.2)[1])
    assert "TimeLimit" in run_mutations(sound, path, endless, 1, 0.1)[1][0]
    assert "allocated" in run_mutations(sound, path, greedy, 1)[1][0]
