"""What work_time.py says of work whose time is known."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import work_time
from work_time import assert_grows_linearly, work_below


class Clock:
    """A thread's time, in which work takes what it says."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def work(self, seconds: Callable[[int], float]) -> Callable[[int], None]:
        def run(size: int) -> None:
            assert not gc.isenabled()
            self.now_s += seconds(size)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(work_time, "time", SimpleNamespace(thread_time=lambda: clock.now_s))
    return clock


@pytest.mark.parametrize(
    "seconds", [lambda n: 0.01 * n, lambda n: 0.5 + 0.01 * n, lambda n: 0.01, lambda n: 1e-7 * n**3]
)
def test_what_grows_with_its_size_or_takes_no_time_passes(clock: Clock, seconds: Callable[[int], float]) -> None:
    assert_grows_linearly(clock.work(seconds), 4)
    assert gc.isenabled()


@pytest.mark.parametrize("times", [4, 16])
def test_what_grows_with_the_square_fails(clock: Clock, times: int) -> None:
    with pytest.raises(AssertionError, match=f"s for {times} times the work of"):
        assert_grows_linearly(clock.work(lambda n: 0.01 + 0.01 * n**2), 4, times=times)
    assert gc.isenabled()


def test_one_delay_is_measured_again(clock: Clock) -> None:
    delays = iter([0.0, 0.0, 100.0])
    assert_grows_linearly(clock.work(lambda n: 0.01 * n + next(delays, 0.0)), 4)


def test_work_above_its_limit_fails(clock: Clock) -> None:
    with work_below(1):
        clock.work(lambda n: n)(0.5)
    with pytest.raises(AssertionError, match=r"1\.50 s of a processor"), work_below(1):
        clock.work(lambda n: n)(1.5)
    assert gc.isenabled()
