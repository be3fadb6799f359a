"""How long dispatches take on a device, without what a submit costs.

A submit costs 0.1 to 0.5 ms, so dispatches are repeated until one takes milliseconds, and the next submit waits on the
device while one runs. Knows nothing of models.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from vkllm.gpu.device.kompute import Device, Dispatch

SUBMIT_S = 0.005
"""Shortest time of a timed submit."""

MEASURE_S = 0.2
"""About how long a measurement takes."""

MAX_DISPATCHES = 4096
"""Most dispatches of a submit."""


def pass_s(device: Device, dispatches: Sequence[Dispatch]) -> float:
    """Seconds of all dispatches, one after the other. Raises DeviceError."""
    device.run(dispatches)
    n_passes, most = 1, max(MAX_DISPATCHES // len(dispatches), 1)
    while True:
        recordings = [device.record([*dispatches] * n_passes)]
        start_s = time.perf_counter()
        device.wait(device.submit(recordings[0]))
        took_s = time.perf_counter() - start_s
        if took_s >= SUBMIT_S or n_passes == most:
            break
        # a short time is mostly the submit's own cost, so more passes are tried than it suggests
        n_passes = min(math.ceil(n_passes * min(max(1.5 * SUBMIT_S / took_s, 2), 16)), most)
    if took_s > MEASURE_S / 2:
        return took_s / n_passes
    recordings.append(device.record([*dispatches] * n_passes))
    return interval_s(device, [partial(device.submit, recording) for recording in recordings], took_s) / n_passes


def interval_s(device: Device, submits: Sequence[Callable[[], int]], expected_s: float) -> float:
    """Median seconds from the end of a submit to that of the next. submits: functions that submit once and return the
    ticket; they are called in turn, with that many submits in flight. expected_s: about how long one takes. Raises
    DeviceError."""
    n_submits = min(max(round(MEASURE_S / expected_s), len(submits) + 1), 100)
    tickets: deque[int] = deque()
    ends_s: list[float] = []
    for submit in itertools.islice(itertools.cycle(submits), n_submits):
        if len(tickets) == len(submits):
            device.wait(tickets.popleft())
            ends_s.append(time.perf_counter())
        tickets.append(submit())
    for ticket in tickets:
        device.wait(ticket)
        ends_s.append(time.perf_counter())
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends_s))
