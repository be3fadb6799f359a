"""Finds good choices by trying: one field after the other, in steps, as long as it gets better.

Pure: what a choice costs comes from a function, the time that is left from another. Clocks of GPUs vary, so a
candidate that seems better runs again, with the best so far in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vkllm.errors import DeviceError, DeviceLost, DeviceTimeout
from vkllm.gpu.program.choices import Tuning
from vkllm.gpu.tuning.space import moved, value_of

MIN_GAIN = 0.005
"""Share of the time that a choice must save to count as better; less is noise."""

WANDER = 0.05
"""A candidate slower than the best by up to this share is measured again, in turn with the best."""


@dataclass(frozen=True)
class Trial:
    """A value that was tried. seconds: of a step, None if it failed; best_seconds: of the best so far, beside it.

    is_better: whether it took the place of the best. failure: why it could not be used.
    """

    field: str
    value: int
    seconds: float | None
    best_seconds: float
    is_better: bool
    failure: str = ""


def search(
    start: Tuning,
    fields: Sequence[str],
    measure: Callable[[Tuning], float],
    is_possible: Callable[[Tuning], bool],
    is_over: Callable[[], bool],
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Tuning:
    """The best choices found from `start` on, until no step of any field is better or is_over.

    measure: seconds of a step with the choices; a DeviceError of a candidate rules it out, except DeviceLost and
    DeviceTimeout, which are raised.
    """
    if is_over():
        return start
    best, best_s, tried = start, measure(start), {start}
    is_changed = True
    while is_changed:
        is_changed = False
        for field in fields:
            for up in (True, False):
                while not is_over():
                    candidate = moved(best, field, up=up)
                    if candidate is None or candidate in tried or not is_possible(candidate):
                        break
                    tried.add(candidate)
                    trial, best_s = _tried(field, candidate, best, best_s, measure)
                    on_trial(trial)
                    if not trial.is_better:
                        break
                    best, is_changed = candidate, True
    return best


def _tried(
    field: str, candidate: Tuning, best: Tuning, best_s: float, measure: Callable[[Tuning], float]
) -> tuple[Trial, float]:
    """A trial, and the seconds of what is the best after it."""
    value = value_of(candidate, field)
    try:
        seconds = measure(candidate)
        if seconds > best_s * (1 + WANDER):
            return Trial(field, value, seconds, best_s, False), best_s
        best_s = measure(best)
        seconds = (seconds + measure(candidate)) / 2  # a clock that drifts evenly does not count
    except (DeviceLost, DeviceTimeout):
        raise
    except DeviceError as error:
        return Trial(field, value, None, best_s, False, str(error)), best_s
    is_better = seconds < best_s * (1 - MIN_GAIN)
    return Trial(field, value, seconds, best_s, is_better), seconds if is_better else best_s
