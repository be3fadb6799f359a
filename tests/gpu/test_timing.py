"""Timing leaves out what a submit costs, on a device whose clock is known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vkllm.gpu.measure import timing
from vkllm.gpu.measure.timing import MAX_DISPATCHES, MEASURE_S, interval_s, pass_s

SUBMIT_S = 0.0003
"""What a submit costs the host here."""


class Clock:
    """A device that takes a dispatch's number as its seconds and runs submits in order, and the host's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.ends_s: list[float] = []
        self.submitted: list[list[float]] = []
        self.most_in_flight = 0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now_s)

    def record(self, dispatches: Sequence[float]) -> list[float]:
        return list(dispatches)

    def submit(self, recording: list[float]) -> int:
        assert not [i for i, other in enumerate(self.submitted) if other is recording and self.ends_s[i] > self.now_s]
        self.now_s += SUBMIT_S
        begin_s = max([self.now_s, *self.ends_s[-1:]])
        self.submitted.append(recording)
        self.ends_s.append(begin_s + sum(recording))
        self.most_in_flight = max(self.most_in_flight, sum(end_s > self.now_s for end_s in self.ends_s))
        return len(self.ends_s)

    def wait(self, ticket: int) -> None:
        self.now_s = max(self.now_s, self.ends_s[ticket - 1])

    def run(self, dispatches: Sequence[float]) -> None:
        self.wait(self.submit(self.record(dispatches)))


@pytest.mark.parametrize("seconds", [[2e-6], [1e-6, 3e-6] * 16, [0.0004] * 30, [0.03], [0.02] * 10])
def test_a_pass_takes_what_its_dispatches_take(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
    clock = Clock(monkeypatch)
    assert pass_s(clock, seconds) == pytest.approx(sum(seconds), rel=0.003)  # type: ignore[arg-type]
    assert max(map(len, clock.submitted)) <= MAX_DISPATCHES
    # a few passes to find out how many, and what is timed; what takes long runs twice
    assert clock.now_s < max(2 * MEASURE_S, 2.1 * sum(seconds))
    assert clock.most_in_flight == (1 if sum(seconds) > MEASURE_S / 2 else 2)


def test_submits_are_made_in_turn_while_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    made: list[int] = []

    def submit(i: int) -> int:
        made.append(i)
        return clock.submit([0.001 + i / 1e9])

    seconds = interval_s(clock, [lambda i=i: submit(i) for i in range(3)], 0.02)  # type: ignore[arg-type, misc]
    assert seconds == pytest.approx(0.001, rel=1e-5)
    assert made == [i % 3 for i in range(round(MEASURE_S / 0.02))]
    assert clock.most_in_flight == 3
