"""Random changes to the header of a GGUF, and limits of time and memory for what then reads it."""

from __future__ import annotations

import random
import signal
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vkllm.formats.gguf import ModelFile

N_MUTATIONS = 200
LIMIT_S = 2.0
LIMIT_BYTES = 64 << 20
"""More than reading any of the files of these tests may allocate."""


class TimeLimit(BaseException):
    """Not an Exception, so that no handler under test swallows it."""


@contextmanager
def limits(seconds: float, n_bytes: int) -> Iterator[None]:
    """Fails what takes more seconds of a processor, or allocates more at its peak."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeLimit(f"ran longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < n_bytes, f"allocated {peak} bytes"
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


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
    offsets = (info.offset for info in ModelFile.open(sound).tensors.values())
    header_bytes = min(offsets, default=len(data))
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
