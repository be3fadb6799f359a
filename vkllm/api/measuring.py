"""What can be measured of a loaded model: how likely it finds a text, how fast its device and kernels are.

These are methods of `LLM`, in a class of their own because they make no text. They know the engine's queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from vkllm.api.prompts import Prompts
from vkllm.engine.events import (
    Answer,
    DeviceAnswer,
    DeviceReport,
    EngineStats,
    Event,
    Failed,
    Finished,
    KernelAnswer,
    Scores,
    TuningAnswer,
    TuningTrial,
)
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import DeviceQuery, KernelQuery, Query, Request, TuningQuery
from vkllm.errors import ContextOverflow, InvalidParameter

if TYPE_CHECKING:
    from vkllm.gpu.measure.step_times import StepTimes
    from vkllm.gpu.tuning.search import Trial
    from vkllm.gpu.tuning.tuner import TuningReport


class Measuring:
    """The part of `LLM` that measures."""

    n_ctx: int
    _engine: EngineProcess
    _prompts: Prompts
    _request_ids: Iterator[int]

    def score(self, token_ids: Sequence[int], *, first: int = 1) -> list[float]:
        """How likely the model finds a text: the natural logarithm of each token's probability after those before it.

        The list begins with token_ids[first]. Token 0 has none, because nothing comes before it, so first is at least
        1. A text may be as long as the context. Raises InvalidParameter, ContextOverflow, DeviceLost.

        >>> logprobs = llm.score(llm.tokenize("The capital of France is Paris"))
        >>> len(logprobs), round(logprobs[-1], 1)
        (5, -0.3)
        """
        if not 1 <= first < len(token_ids):
            raise InvalidParameter(
                f"token {first} of {len(token_ids)} cannot be scored; take one of the text that has tokens before it"
            )
        if len(token_ids) > self.n_ctx:
            raise ContextOverflow(
                f"the text has {len(token_ids)} tokens and the context holds {self.n_ctx}; "
                "score it in parts or load the model with a larger context"
            )
        prompt = tuple(self._prompts.checked_tokens(token_ids))
        request = Request(next(self._request_ids), prompt, SamplingParams(), frozenset(), score_from=first)
        logprobs: list[float] = []
        for event in self._events(request):
            if isinstance(event, Scores):
                logprobs += event.logprobs
        return logprobs

    def stats(self) -> EngineStats:
        """Counts and seconds of all requests that ended since the model was loaded, and those of the last one."""
        return self._engine.stats

    def measure_device(self) -> DeviceReport:
        """The device with its driver and limits, and how fast it reads memory, which takes a second to measure.

        Raises OutOfDeviceMemory if there is no room for the measurement, DeviceLost.
        """
        for event in self._events(DeviceQuery(next(self._request_ids))):
            if isinstance(event, DeviceAnswer):
                return event.report
        raise AssertionError("the engine did not answer")

    def measure_kernels(self, n_rows: int = 1, n_depth: int = 0) -> StepTimes:
        """How long each kernel takes of a step of n_rows, up to 512, with n_depth tokens cached; 1 is decoding.

        It takes seconds, and no other request may run meanwhile. Raises InvalidParameter, ContextOverflow,
        OutOfDeviceMemory, DeviceLost.
        """
        for event in self._events(KernelQuery(next(self._request_ids), n_rows, n_depth)):
            if isinstance(event, KernelAnswer):
                return event.times
        raise AssertionError("the engine did not answer")

    def tune(self, budget_s: float = 30.0, on_trial: Callable[[Trial], None] | None = None) -> TuningReport:
        """Finds by trying how this device runs models like this one fastest, uses that, and keeps it for later loads.

        budget_s: how long it may take, roughly. on_trial is called after each trial. Raises InvalidParameter if
        requests are open or come meanwhile, DeviceError.
        """
        if not 1 <= budget_s <= 3600:
            raise InvalidParameter(f"a budget of {budget_s} seconds is not possible; give 1 to 3600")
        for event in self._events(TuningQuery(next(self._request_ids), budget_s)):
            if isinstance(event, TuningAnswer):
                return event.report
            if isinstance(event, TuningTrial) and on_trial is not None:
                on_trial(event.trial)
        raise AssertionError("the engine did not answer")

    def _events(self, request: Request | Query) -> Iterator[Event]:
        """Events of a request that makes no text, to its end. Raises what ends it early."""
        events = self._engine.submit(request)
        try:
            while True:
                event = events.get()
                if isinstance(event, Failed):
                    raise event.error
                yield event
                if isinstance(event, Finished | Answer):
                    return
        except KeyboardInterrupt:
            self._engine.cancel(request.id)
            raise
