"""What an engine tells its caller: tokens, results, counts, the end of a request.

Small frozen dataclasses that pickle, because the engine lives in a child process. They hold token ids, no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vkllm.errors import VkllmError
from vkllm.gpu.device.probe import DeviceInfo

if TYPE_CHECKING:
    from vkllm.gpu.measure.step_times import StepTimes
    from vkllm.gpu.tuning.search import Trial
    from vkllm.gpu.tuning.tuner import TuningReport


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability under the model (before any sampler)."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class Token:
    """One generated token. logprob and top_logprobs are set only when the request asked for logprobs."""

    request_id: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class PromptProgress:
    """How far a prompt has been run, for requests that want to know.

    n_processed: tokens of the prompt whose keys and values are there; n_cached: of these, those that were there before.
    run_s: seconds since the request was started. n_prompt: all of its tokens.
    """

    request_id: int
    n_prompt: int
    n_cached: int
    n_processed: int
    run_s: float


@dataclass(frozen=True)
class RunStats:
    """Counts and seconds of one request.

    n_cached: prompt tokens whose keys and values were still there from an earlier request.
    prompt_s: from start to the logits of the last prompt token; first_token_s: from submission to the first
    token; generate_s: from the first token to the last. n_shifts: how often the context was full and its middle was
    dropped. queue_s: from submission to start. n_drafted: tokens that were drafted, in n_drafts; n_accepted: of these,
    tokens that became part of the answer. n_steps: steps of the model that it took part in; step_share: the same, but a
    step of several requests counts in parts, so that the shares of all requests add up to the steps of the model.

    >>> stats = llm.generate("The capital of France is", max_tokens=2).stats
    >>> stats.n_prompt, stats.n_generated
    (5, 2)
    >>> print(f"Speed: {stats.generate_per_s:.1f} tokens a second")
    Speed: ... tokens a second
    """

    n_prompt: int
    n_cached: int
    n_generated: int
    prompt_s: float
    first_token_s: float
    generate_s: float
    n_shifts: int = 0
    queue_s: float = 0.0
    n_drafted: int = 0
    n_accepted: int = 0
    n_drafts: int = 0
    n_steps: int = 0
    step_share: float = 0.0

    @property
    def prompt_per_s(self) -> float:
        """Prompt tokens processed a second (cached ones do not count); 0 where nothing was measured."""
        return (self.n_prompt - self.n_cached) / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def generate_per_s(self) -> float:
        """Generated tokens a second after the first; 0 where nothing was measured."""
        return (self.n_generated - 1) / self.generate_s if self.generate_s > 0 and self.n_generated > 1 else 0.0


@dataclass(frozen=True)
class EngineStats:
    """Sums over all requests that ended since the model was loaded, as in `RunStats`; last: those of the last one.
    n_longest: tokens of the longest, prompt and answer together.

    >>> before = llm.stats().n_generated
    >>> answer = llm.generate("The capital of France is", max_tokens=2)
    >>> llm.stats().n_generated - before
    2
    """

    n_requests: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    prompt_s: float = 0.0
    generate_s: float = 0.0
    n_drafted: int = 0
    n_accepted: int = 0
    n_drafts: int = 0
    n_steps: int = 0
    step_share: float = 0.0
    n_longest: int = 0
    last: RunStats | None = None

    def plus(self, stats: RunStats) -> EngineStats:
        """The sums with one more request."""
        return EngineStats(
            n_requests=self.n_requests + 1,
            n_prompt=self.n_prompt + stats.n_prompt,
            n_cached=self.n_cached + stats.n_cached,
            n_generated=self.n_generated + stats.n_generated,
            prompt_s=self.prompt_s + stats.prompt_s,
            generate_s=self.generate_s + stats.generate_s,
            n_drafted=self.n_drafted + stats.n_drafted,
            n_accepted=self.n_accepted + stats.n_accepted,
            n_drafts=self.n_drafts + stats.n_drafts,
            n_steps=self.n_steps + stats.n_steps,
            step_share=self.step_share + stats.step_share,
            n_longest=max(self.n_longest, stats.n_prompt + stats.n_generated),
            last=stats,
        )


@dataclass(frozen=True)
class Finished:
    """The request ended: a stop token, the length limit, or a cancel."""

    request_id: int
    reason: Literal["stop", "length", "cancelled"]
    stats: RunStats


@dataclass(frozen=True)
class Failed:
    """The request ended with an error."""

    request_id: int
    error: VkllmError


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the prompt tokens that follow those of the request's last `Scores`."""

    request_id: int
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Embedded:
    """The embedding of the request's prompt: d_model numbers, whose squares add up to 1."""

    request_id: int
    vector: tuple[float, ...]


@dataclass(frozen=True)
class DeviceReport:
    """The device that an engine runs on. read_bytes_per_s: measured, over memory much larger than a GPU's cache.

    >>> report = llm.measure_device()
    >>> print(f"The {report.info.name} reads {report.read_bytes_per_s / 1e9:.3f} GB/s")
    The ... reads ... GB/s
    """

    info: DeviceInfo
    read_bytes_per_s: float


@dataclass(frozen=True)
class DeviceAnswer:
    """What a `DeviceQuery` asked for."""

    request_id: int
    report: DeviceReport


@dataclass(frozen=True)
class TuningTrial:
    """A choice that was tried for a `TuningQuery`."""

    request_id: int
    trial: Trial


@dataclass(frozen=True)
class TuningAnswer:
    """What a `TuningQuery` asked for."""

    request_id: int
    report: TuningReport


@dataclass(frozen=True)
class KernelAnswer:
    """What a `KernelQuery` asked for."""

    request_id: int
    times: StepTimes


@dataclass(frozen=True)
class StateAnswer:
    """What a `StateQuery` asked for is done. token_ids: those whose keys and values are cached now."""

    request_id: int
    token_ids: tuple[int, ...]


Answer = DeviceAnswer | TuningAnswer | KernelAnswer | StateAnswer


Event = Token | PromptProgress | Scores | Embedded | TuningTrial | Answer | Finished | Failed
