"""The search with made-up costs and a clock that wanders: what it finds, what it rules out, when it ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from tunings import H100, LLAMA_7B, with_decode

from vkllm.errors import DeviceError, DeviceLost, OutOfDeviceMemory
from vkllm.gpu.program.choices import Tuning, tuning
from vkllm.gpu.tuning.search import Trial, search
from vkllm.gpu.tuning.space import DECODE_FIELDS, is_possible

START = tuning(H100)


def distance(choices: Tuning, **best: int) -> float:
    """A cost with one valley, at `best`: how many doublings away it is."""
    return sum(abs(math.log2(getattr(choices.decode, name) / value)) for name, value in best.items())


def find(measure: Callable[[Tuning], float], is_over: Callable[[], bool] = lambda: False) -> tuple[Tuning, list[Trial]]:
    trials: list[Trial] = []
    possible = lambda choices: is_possible(choices, H100, LLAMA_7B)  # noqa: E731
    return search(START, DECODE_FIELDS, measure, possible, is_over, trials.append), trials


def test_it_walks_along_each_field_to_the_best_values() -> None:
    best = {"size": 128, "groups": 528, "rows": 4, "keys_at_once": 1, "attention_groups": 1056}
    found, trials = find(lambda choices: 1 + 0.1 * distance(choices, **best))
    assert found == with_decode(START, **best)
    better = [(trial.field, trial.value) for trial in trials if trial.is_better]
    assert better[:4] == [("decode.size", 256), ("decode.size", 128), ("decode.groups", 264), ("decode.groups", 528)]


def test_a_better_value_that_shows_only_after_another_field_changed_is_found_in_the_next_round() -> None:
    def measure(choices: Tuning) -> float:
        decode = choices.decode
        return 1.0 - 0.2 * (decode.unroll == 4) - 0.2 * (decode.unroll == 4 and decode.size == 256)  # sizes come first

    found, _ = find(measure)
    assert (found.decode.unroll, found.decode.size) == (4, 256)


def test_values_that_change_nothing_leave_the_table_as_it_is() -> None:
    found, trials = find(lambda choices: 1.0)
    assert found == START
    assert trials and not any(trial.is_better for trial in trials)


def test_a_clock_that_slows_down_or_speeds_up_changes_no_choice() -> None:
    for drift in (1.01, 0.99):
        n_measured = 0

        def measure(choices: Tuning, drift: float = drift) -> float:
            nonlocal n_measured
            n_measured += 1
            return drift**n_measured * (1 + 0.1 * distance(choices, rows=4))

        found, _ = find(measure)
        assert found == with_decode(START, rows=4), drift


def test_a_single_lucky_measurement_is_not_believed() -> None:
    n_measured: dict[Tuning, int] = {}

    def measure(choices: Tuning) -> float:
        n_measured[choices] = n_measured.get(choices, 0) + 1
        is_lucky = choices.decode.rows == 4 and n_measured[choices] == 1
        return 0.97 if is_lucky else 1.04 if choices.decode.rows == 4 else 1.0

    assert find(measure)[0] == START


@pytest.mark.parametrize("error", [DeviceError("its logits are wrong"), OutOfDeviceMemory("no room")])
def test_a_candidate_that_fails_is_ruled_out_and_said(error: DeviceError) -> None:
    def measure(choices: Tuning) -> float:
        if choices.decode.size == 256:
            raise error
        return 1 + 0.1 * distance(choices, size=256, rows=4)

    found, trials = find(measure)
    assert found == with_decode(START, rows=4)
    failed = [trial for trial in trials if trial.seconds is None]
    assert {(trial.field, trial.value, trial.is_better, trial.failure) for trial in failed} == {
        ("decode.size", 256, False, str(error))
    }


def test_a_lost_device_ends_the_search() -> None:
    def measure(choices: Tuning) -> float:
        if choices != START:
            raise DeviceLost("gone")
        return 1.0

    with pytest.raises(DeviceLost):
        find(measure)


def test_it_ends_with_the_best_so_far_when_time_is_over() -> None:
    now = 0.0

    def measure(choices: Tuning) -> float:
        nonlocal now
        now += 1
        return 1 + 0.1 * distance(choices, size=128, rows=4)

    found, trials = find(measure, lambda: now > 4)
    assert found == with_decode(START, size=256)
    assert [trial.value for trial in trials] == [1024, 256]
    assert now == 1 + 1 + 3, "once for the start, once for what is much slower, three times for what may be better"
    assert find(measure, lambda: now > 4) == (START, []) and now == 5, "nothing is measured when time is over"


def test_no_choice_that_is_clearly_slower_is_measured_twice() -> None:
    measured: list[Tuning] = []

    def measure(choices: Tuning) -> float:
        measured.append(choices)
        return 1.0 if choices == START else 2.0

    find(measure)
    assert len(set(measured)) == len(measured) > len(DECODE_FIELDS)
