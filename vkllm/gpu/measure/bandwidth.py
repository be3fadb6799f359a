"""How fast a device reads a memory, measured in a second.

Decoding reads all weights for each token, so this is its ceiling. Knows nothing of models.
"""

from __future__ import annotations

import time

from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.layer.memory import LayerTier
from vkllm.gpu.measure.timing import pass_s
from vkllm.gpu.program.kernels import KERNELS

LARGEST_BYTES = 2**30
LARGEST_HOST_BYTES = 2**28
SMALLEST_BYTES = 2**24
CPU_BYTES = 2**26

LOCAL_SIZE = 256
MOST_GROUPS = 2048
LOADS = 32
"""Fewest loads of an invocation."""

WARM_UP_S = 1.0
"""About how long an idle GPU takes to reach its full clocks; until then, an H100 reads at half its speed."""


def read_bandwidth(device: Device, free_bytes: int, tier: LayerTier = "local") -> float:
    """Bytes a second that the device reads. free_bytes: unused memory of the tier; at most a quarter of it is
    allocated, and freed again. Raises DeviceError."""
    most = CPU_BYTES if device.info.type == "cpu" else LARGEST_BYTES if tier == "local" else LARGEST_HOST_BYTES
    n_bytes = max(min(most, free_bytes // 4, device.info.max_binding_bytes), SMALLEST_BYTES)
    n_words = n_bytes // 64 * 16
    source, sums = device.buffer(n_words, tier=tier), device.buffer(LOCAL_SIZE * MOST_GROUPS)
    device.run(_filling(device, source, sums))
    reading = device.dispatch(
        KERNELS["read_bandwidth"],
        (source, sums),
        constants=(LOCAL_SIZE,),
        groups=(min(n_words // 4 // (LOADS * LOCAL_SIZE), MOST_GROUPS), 1),
        push=(n_words // 4,),
    )
    fastest_s, end_s = pass_s(device, [reading]), time.perf_counter() + WARM_UP_S
    while device.info.type != "cpu" and time.perf_counter() < end_s:
        fastest_s = min(fastest_s, pass_s(device, [reading]))
    return 4 * n_words / fastest_s


def _filling(device: Device, target: Buffer, words: Buffer) -> list[Dispatch]:
    """Writes all of target: a system may not back memory with real pages until it is written."""
    copy = device.dispatch(
        KERNELS["copy_words"], (words, target), constants=(LOCAL_SIZE,), groups=(1024, 1), push=(0, 0, 0)
    )
    starts = range(0, target.n_words, words.n_words)
    return [copy.with_push(min(words.n_words, target.n_words - start), start, 0) for start in starts]
