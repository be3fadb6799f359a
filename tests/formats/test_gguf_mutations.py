"""GGUF reading: whatever is changed in a file at random, the reader raises a typed error or reads it right."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf_files import LIMIT_BYTES, TimeLimit, limits

from vkllm.errors import ModelFileError, VkllmError
from vkllm.formats.gguf import ModelFile, TensorInfo, read_tensor

N_MUTATIONS = 200
LIMIT_S = 2.0


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
    sound: Path, path: Path, read: Callable[[Path], bool], n: int = N_MUTATIONS, seconds: float = LIMIT_S
) -> tuple[int, list[str]]:
    """How many of the mutated files opened, and every failure of `read` with the number of its mutation."""
    data = sound.read_bytes()
    header_bytes = min(info.offset for info in ModelFile.open(sound).tensors.values())
    n_opened = 0
    failures = []
    for number in range(n):
        path.write_bytes(mutate(data, header_bytes, random.Random(number)))
        try:
            with limits(seconds, LIMIT_BYTES):
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
        return bool(np.zeros(LIMIT_BYTES + 1, np.uint8).size)

    path = tmp_path / "mutated.gguf"
    assert any("ValueError" in failure for failure in run_mutations(sound, path, plain_reader, 30, 0.2)[1])
    assert "TimeLimit" in run_mutations(sound, path, endless, 1, 0.1)[1][0]
    assert "allocated" in run_mutations(sound, path, greedy, 1)[1][0]
