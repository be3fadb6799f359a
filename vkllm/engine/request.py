"""What passes between a caller and the engine: requests in, tokens out.

Everything here is a small frozen dataclass that pickles, because the engine lives in a child process.
It knows token ids only; text, stop strings and chat templates belong to `vkllm.llm`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vkllm.errors import InvalidParameter, VkllmError
from vkllm.formats.gguf import TensorInfo
from vkllm.gpu.probe import DeviceInfo
from vkllm.model.plan import PlanOptions
from vkllm.model.spec import ModelSpec, Pooling

if TYPE_CHECKING:
    from vkllm.gpu.step_times import StepTimes
    from vkllm.gpu.tuner import TuningReport
    from vkllm.gpu.tuning_search import Trial


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. The samplers run in llama.cpp's order: penalties, top-k, top-p, min-p, temperature.

    temperature: 0 is greedy; top_k: 0 keeps all; top_p: 1 keeps all; min_p: 0 keeps all.
    repetition_penalty (1 = off), presence_penalty and frequency_penalty (0 = off) look at the last
    `penalty_window` tokens of prompt and answer (0 = none, -1 = all).
    max_tokens: None means as many as the context holds. seed: None draws one.
    context_shift: an answer that fills the context goes on after its middle was dropped (`Request.n_keep`), instead of
    ending there; then max_tokens None is no limit.
    stop: strings that end the answer (handled in `vkllm.llm`). logprobs: how many alternatives to report.
    json_schema, regex, grammar: at most one; the whole answer is JSON of this schema (given as text), matches this
    expression (Rust's syntax) or is of this grammar (Lark as llguidance reads it, or llama.cpp's GBNF), unless
    max_tokens, a stop string or a stop token ends it early. It ends where nothing may follow, ignore_eos or not.

    >>> params = SamplingParams(temperature=0, max_tokens=1)
    >>> llm.generate("The capital of France is", params).text
    ' Paris'
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    context_shift: bool = False
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidParameter for a value out of its range."""
        _within("max_tokens", self.max_tokens, 1, 2**31)
        _within("temperature", self.temperature, 0, 100)
        _within("top_k", self.top_k, 0, 2**31)
        _within("top_p", self.top_p, 0, 1)
        _within("min_p", self.min_p, 0, 1)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        _within("penalty_window", self.penalty_window, -1, 2**31)
        _within("seed", self.seed, 0, 2**64 - 1)
        _within("logprobs", self.logprobs, 0, 1000)
        if any(not text for text in self.stop):
            raise InvalidParameter("stop must not contain an empty string; leave it out instead")
        given = {name: getattr(self, name) for name in ("json_schema", "regex", "grammar")}
        given = {name: text for name, text in given.items() if text is not None}
        if len(given) > 1:
            raise InvalidParameter(f"an answer cannot follow both {' and '.join(given)}; give one of them")
        for name, text in given.items():
            if not isinstance(text, str):
                raise InvalidParameter(f"{name} must be a string, not {type(text).__name__}")

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on earlier tokens beyond the model itself."""
        return self.penalty_window != 0 and (
            self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        )


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value) or not low <= value <= high:
        raise InvalidParameter(f"{name} must be a number between {low} and {high}, not {value!r}")


@dataclass(frozen=True)
class Request:
    """One prompt to continue. id: chosen by the caller, unique among open requests.

    score_from: generate nothing, but report (as `Scores`) the log-probability of each prompt token from this one on;
    at least 1, because nothing comes before token 0. pooling: generate nothing, but report the prompt's embedding (as
    `Embedded`), made of its rows in this way. n_keep: prompt tokens, from the first on, that no context shift
    drops. grammar: llguidance's grammar of the answer, from params' json_schema, regex or grammar.
    """

    id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    score_from: int | None = None
    pooling: Pooling | None = None
    n_keep: int = 0
    grammar: str | None = None

    @property
    def is_answered(self) -> bool:
        """Whether tokens are generated."""
        return self.score_from is None and self.pooling is None


@dataclass(frozen=True)
class DeviceQuery:
    """Asks what the device is and how fast it reads memory; the answer is `DeviceAnswer`. id: as a request's."""

    id: int


@dataclass(frozen=True)
class TuningQuery:
    """Asks for the best choices for the device, within about budget_s; `TuningTrial`s come, then `TuningAnswer`."""

    id: int
    budget_s: float


@dataclass(frozen=True)
class KernelQuery:
    """Asks how long the kernels of a step of n_rows take with n_depth tokens cached; the answer is `KernelAnswer`."""

    id: int
    n_rows: int
    n_depth: int


@dataclass(frozen=True)
class StateQuery:
    """Saves what is cached to a file, or caches what a file holds; the answer is `StateAnswer`.

    It waits for its turn among the requests, so it finds what the one before it has left.
    """

    id: int
    action: Literal["save", "load"]
    path: Path


Query = DeviceQuery | TuningQuery | KernelQuery | StateQuery


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
class RunStats:
    """Counts and seconds of one request.

    n_cached: prompt tokens whose keys and values were still there from an earlier request.
    prompt_s: from start to the logits of the last prompt token; first_token_s: from submission to the first
    token; generate_s: from the first token to the last. n_shifts: how often the context was full and its middle was
    dropped.

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
Event = Token | Scores | Embedded | TuningTrial | Answer | Finished | Failed


@dataclass(frozen=True)
class EngineConfig:
    """All that an engine needs to load a model.

    n_ctx: tokens of context, or 0 for the longest that costs no speed. device: index, name or None (the best).
    options: what the user asks of the memory plan. token_bytes: what each token adds to a text, as
    `Tokenizer.answer_bytes` gives it; end_ids: the tokens that end an answer. Only answers with a grammar need them.
    """

    path: Path
    tensors: dict[str, TensorInfo]
    spec: ModelSpec
    n_ctx: int
    device: str | None = None
    options: PlanOptions = field(default_factory=PlanOptions)
    token_bytes: tuple[bytes, ...] = ()
    end_ids: frozenset[int] = frozenset()
