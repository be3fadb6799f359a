"""read_bandwidth reads every word, and the measurement is what a stopwatch beside it allows."""

import math
import time

import numpy as np
import pytest
from kernel_case import filled, poisoned, words

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.measure import bandwidth
from vkllm.gpu.program.kernels import KERNELS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("n_fours", [1, 1000, 70_001])
def test_the_sums_hold_every_word(device: Device, n_fours: int) -> None:
    source = np.random.default_rng(n_fours).integers(0, 2**32, 4 * n_fours, dtype=np.uint32)
    n_sums = 64 * 64  # invocations, with none to 18 reads each, of which eight are under way at once
    sums = poisoned(device, n_sums)
    buffers = (filled(device, source), sums)
    read = device.dispatch(KERNELS["read_bandwidth"], buffers, constants=(64,), groups=(64, 1), push=(n_fours,))
    device.run([read])
    by_invocation = np.zeros((-(-n_fours // n_sums) * n_sums, 4), np.uint32)
    by_invocation[:n_fours] = source.reshape(-1, 4)
    wanted = by_invocation.reshape(-1, n_sums, 4).sum(axis=(0, 2), dtype=np.uint32)
    assert np.array_equal(words(sums, (n_sums,)), wanted)


def test_the_measured_bandwidth_agrees_with_the_clock(device: Device) -> None:
    bytes_per_s = bandwidth.read_bandwidth(device, free_bytes=2**27)
    source, sums = device.buffer(2**23), device.buffer(64 * 64)  # a quarter of what is free
    read = device.dispatch(KERNELS["read_bandwidth"], (source, sums), constants=(64,), groups=(64, 1), push=(2**21,))
    recording = device.record([read])
    fastest_s = math.inf
    for _ in range(5):
        start_s = time.perf_counter()
        device.wait(device.submit(recording))
        fastest_s = min(fastest_s, time.perf_counter() - start_s)
    # a submit's own cost counts here, and fewer invocations read; other work on the machine may slow either
    assert bytes_per_s > 0.5 * 4 * source.n_words / fastest_s
    assert bytes_per_s < 2e13, "twice what any memory does today"
