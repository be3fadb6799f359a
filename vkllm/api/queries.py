"""Requests that make no text: scores, measurements, saved states. What `LLM`'s methods of these names call.

Each sends one request and waits for what comes of it; prompts and answers are others'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vkllm.api.prompts import Prompts
from vkllm.engine.events import (
    Answer,
    DeviceAnswer,
    DeviceReport,
    Event,
    Failed,
    Finished,
    KernelAnswer,
    Scores,
    StateAnswer,
    TuningAnswer,
    TuningTrial,
)
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import DeviceQuery, KernelQuery, Query, Request, StateQuery, TuningQuery
from vkllm.errors import InvalidParameter
from vkllm.parameters import number

if TYPE_CHECKING:
    from vkllm.gpu.measure.step_times import StepTimes
    from vkllm.gpu.tuning.search import Trial
    from vkllm.gpu.tuning.tuner import TuningReport


def score(engine: EngineProcess, request: Request) -> list[float]:
    """The log-probabilities that a request for scores asks for. Raises DeviceLost."""
    logprobs: list[float] = []
    for event in _events(engine, request):
        if isinstance(event, Scores):
            logprobs += event.logprobs
    return logprobs


def measure_device(engine: EngineProcess, prompts: Prompts) -> DeviceReport:
    """As `LLM.measure_device`."""
    for event in _events(engine, DeviceQuery(prompts.next_id())):
        if isinstance(event, DeviceAnswer):
            return event.report
    raise AssertionError("the engine did not answer")


def measure_kernels(engine: EngineProcess, prompts: Prompts, n_rows: int, n_depth: int) -> StepTimes:
    """As `LLM.measure_kernels`."""
    for event in _events(engine, KernelQuery(prompts.next_id(), n_rows, n_depth)):
        if isinstance(event, KernelAnswer):
            return event.times
    raise AssertionError("the engine did not answer")


def tune(
    engine: EngineProcess, prompts: Prompts, budget_s: float, on_trial: Callable[[Trial], None] | None
) -> TuningReport:
    """As `LLM.tune`."""
    for event in _events(engine, TuningQuery(prompts.next_id(), number("budget_s", budget_s, 1, 3600))):
        if isinstance(event, TuningAnswer):
            return event.report
        if isinstance(event, TuningTrial) and on_trial is not None:
            on_trial(event.trial)
    raise AssertionError("the engine did not answer")


def move_state(
    engine: EngineProcess, prompts: Prompts, action: Literal["save", "load"], path: str | Path, origin: str
) -> tuple[int, ...]:
    """Saves what is cached of an origin, or caches what a file holds; returns the token ids."""
    if not isinstance(path, str | Path):
        raise InvalidParameter(f"the path of a state must be text or a Path, not {path!r}")
    # the engine's process may have started in another folder
    query = StateQuery(prompts.next_id(), action, Path(path).expanduser().absolute(), origin)
    for event in _events(engine, query):
        if isinstance(event, StateAnswer):
            return event.token_ids
    raise AssertionError("the engine did not answer")


def _events(engine: EngineProcess, request: Request | Query) -> Iterator[Event]:
    """Events of a request, to its end. Raises what ends it early; what ends this early cancels the request."""
    events = engine.submit(request)
    is_over = False
    try:
        while not is_over:
            event = engine.wait(events)
            is_over = isinstance(event, Failed | Finished | Answer)
            if isinstance(event, Failed):
                raise event.error
            yield event
    finally:
        if not is_over:
            engine.cancel(request.id)
