"""What a caller asks of an engine: prompts to continue, measurements, saved states; `EngineConfig` to load a model.

Small frozen dataclasses that pickle, because the engine lives in a child process. They hold token ids, no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vkllm.engine.params import SamplingParams
from vkllm.formats.gguf import TensorInfo
from vkllm.model.memory.plan import PlanOptions
from vkllm.model.spec import ModelSpec, Pooling


@dataclass(frozen=True)
class Request:
    """One prompt to continue. id: chosen by the caller, unique among open requests.

    score_from: generate nothing, but report (as `Scores`) the log-probability of each prompt token from this one on;
    at least 1, because nothing comes before token 0. pooling: generate nothing, but report the prompt's embedding (as
    `Embedded`), made of its rows in this way. n_keep: prompt tokens, from the first on, that no context shift
    drops. grammar: llguidance's grammar of the answer, from params' json_schema, regex or grammar. origin: whose text
    it is; what is cached of one origin is never used for another. deadline_s: seconds from its submission; a request
    that has not ended by then fails. tells_progress: `PromptProgress` is reported while the prompt runs.
    """

    id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    score_from: int | None = None
    pooling: Pooling | None = None
    n_keep: int = 0
    grammar: str | None = None
    origin: str = ""
    deadline_s: float | None = None
    tells_progress: bool = False

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
    """Saves what is cached of an origin to a file, or caches for it what a file holds; the answer is `StateAnswer`.

    It waits for its turn among the requests of that origin, so it finds what the one before it has left.
    """

    id: int
    action: Literal["save", "load"]
    path: Path
    origin: str = ""


Query = DeviceQuery | TuningQuery | KernelQuery | StateQuery


@dataclass(frozen=True)
class EngineConfig:
    """All that an engine needs to load a model.

    n_ctx: tokens of context, or 0 for the longest that costs no speed. device: index, name or None (the best).
    options: what the user asks of the memory plan. queue: how many requests may wait; None: any number. How many run
    at once is one of the options.
    """

    path: Path
    tensors: dict[str, TensorInfo]
    spec: ModelSpec
    n_ctx: int
    device: str | None = None
    options: PlanOptions = field(default_factory=PlanOptions)
    queue: int | None = None


@dataclass(frozen=True)
class TokenTexts:
    """What answers with a grammar have to know of the vocabulary; it comes before the first request.

    token_bytes: what each token adds to a text, as `Tokenizer.answer_bytes` gives it. end_ids: the tokens that end an
    answer.
    """

    token_bytes: tuple[bytes, ...]
    end_ids: frozenset[int]
