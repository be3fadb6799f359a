"""How fast a device reads a memory, measured in a fraction of a second.

Decoding reads all weights for each token, so this is its ceiling. Knows nothing of models.
"""

from __future__ import annotations

import time

from vkllm.gpu.device import Buffer, Device, Dispatch
from vkllm.gpu.kernels import KERNELS
from vkllm.gpu.layer.memory import Tier

LARGEST_BYTES = 2**30
LARGEST_HOST_BYTES = 2**28
SMALLEST_BYTES = 2**24
CPU_BYTES = 2**26

N_TIMES = 5
"""Submits that are timed; the fastest counts."""

READS_PER_SUBMIT = 8
"""Times that a submit reads the buffer, so that the cost of the submit itself hardly shows."""

LOCAL_SIZE = 256
N_GROUPS = 4096


def read_bandwidth(device: Device, free_bytes: int, tier: Tier = "local") -> float:
    """Bytes a second that the device reads. free_bytes: memory of the tier that nobody uses; at most a quarter is
    taken, for the moment. Raises DeviceError."""
    most = CPU_BYTES if device.info.type == "cpu" else LARGEST_BYTES if tier == "local" else LARGEST_HOST_BYTES
    n_bytes = max(min(most, free_bytes // 4, device.info.max_binding_bytes), SMALLEST_BYTES)
    n_words = n_bytes // 64 * 16
    source, sums = device.buffer(n_words, tier=tier), device.buffer(LOCAL_SIZE * N_GROUPS)
    device.run(_filling(device, source, sums))
    reading = device.dispatch(
        KERNELS["read_bandwidth"],
        (source, sums),
        constants=(LOCAL_SIZE,),
        groups=(N_GROUPS, 1),
        push=(n_words // 4,),
    )
    recording = device.record([reading] * READS_PER_SUBMIT)
    device.wait(device.submit(recording))
    fastest_s = float("inf")
    for _ in range(N_TIMES):
        start_s = time.perf_counter()
        device.wait(device.submit(recording))
        fastest_s = min(fastest_s, time.perf_counter() - start_s)
    return READS_PER_SUBMIT * 4 * n_words / fastest_s


def _filling(device: Device, target: Buffer, words: Buffer) -> list[Dispatch]:
    """Writes all of target: a system may give memory that was never written no place of its own."""
    copy = device.dispatch(
        KERNELS["copy_words"], (words, target), constants=(LOCAL_SIZE,), groups=(1024, 1), push=(0, 0)
    )
    starts = range(0, target.n_words, words.n_words)
    return [copy.with_push(min(words.n_words, target.n_words - start), start) for start in starts]
