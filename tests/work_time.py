"""How long work takes, in ways that do not depend on how fast or how busy the machine is."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_N_ATTEMPTS = 4
_NOISE_S = 0.03
"""Work that is shorter says nothing: interrupts and cold caches take as long."""


@contextmanager
def work_below(limit_s: float) -> Iterator[None]:
    """Asserts that what runs inside takes this thread fewer seconds of a processor.

    Neither other threads count nor collecting the garbage of earlier tests. Healthy work should take less than a tenth
    of the limit, as processors differ, and the fault more than ten times as long.
    """
    with without_garbage_collection():
        start_s = time.thread_time()
        yield
        took_s = time.thread_time() - start_s
    assert took_s < limit_s, f"{took_s:.2f} s of a processor"


def assert_grows_linearly(work: Callable[[int], object], size: int, *, times: int = 16) -> None:
    """Asserts that work of `times * size` takes about `times` as long as work of `size`, and not the square of that.

    work: what is measured, in this thread, for a size. The limit lies between the two: 64 for 16 times the size. What
    seems too long is measured again, and the shortest times count, since others on the machine only lengthen them.
    """
    small_s = large_s = math.inf
    for _ in range(_N_ATTEMPTS):
        small_s = min(small_s, *(_seconds(work, size) for _ in range(2)))
        large_s = min(large_s, _seconds(work, times * size))
        if large_s < max(_NOISE_S, times**1.5 * small_s):
            return
    raise AssertionError(f"{large_s:.3f} s for {times} times the work of {small_s:.4f} s")


def _seconds(work: Callable[[int], object], size: int) -> float:
    with without_garbage_collection():
        start_s = time.thread_time()
        work(size)
        return time.thread_time() - start_s


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Late in a run of thousands of tests a collection of their garbage alone takes some tenths of a second."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
