"""The request that an engine is running: its progress and its counts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vkllm.engine.constraint import Constraint
from vkllm.engine.events import RunStats
from vkllm.engine.requests import Request
from vkllm.engine.sampler import Sampler
from vkllm.errors import ContextOverflow, InvalidParameter, VkllmError, counted
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.gpu.program.program import Submitted
from vkllm.gpu.program.step import Result


@dataclass
class Run:
    """The request that is running.

    sequence: the tokens that are to be in the context, of which the cache holds the first: the prompt and what was
    generated, less what shifts dropped. in_flight: steps that choose a token, oldest first. The oldest one's input is
    known; the input of each later one is the token that the step before it chooses on the GPU. hidden_sum: of the rows
    that its embedding is made of.
    """

    request: Request
    sampler: Sampler
    submitted_s: float
    started_s: float
    n_cached: int
    sequence: list[int]
    n_generated: int = 0
    n_shifts: int = 0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    in_flight: deque[Submitted] = field(default_factory=deque)
    hidden_sum: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    constraint: Constraint | None = None

    @property
    def wants_logits(self) -> bool:
        """Whether the CPU must choose its tokens."""
        return self.request.params.logprobs is not None or not self.sampler.suits_gpu

    def next_result(self) -> Result:
        """What its next step makes: a token, where the GPU can choose it."""
        if self.wants_logits:
            return Result(wants_logits=True)
        draw = None if self.request.params.temperature == 0 else self.sampler.next_draw()
        return Result(draw, None if self.constraint is None else self.constraint.mask())

    @property
    def can_run_ahead(self) -> bool:
        """Whether a step may be submitted before the token that comes before it was read."""
        return not self.wants_logits and self.constraint is None

    def stats(self) -> RunStats:
        """Counts and seconds so far."""
        has_token = self.first_token_s > 0
        return RunStats(
            n_prompt=len(self.request.prompt_token_ids),
            n_cached=self.n_cached,
            n_generated=self.n_generated,
            prompt_s=self.first_token_s - self.started_s if has_token else 0.0,
            first_token_s=self.first_token_s - self.submitted_s if has_token else 0.0,
            generate_s=self.last_token_s - self.first_token_s,
            n_shifts=self.n_shifts,
        )


def refusal(request: Request, n_ctx: int, *, is_causal: bool) -> VkllmError | None:
    """Why a request cannot be run with a context of n_ctx tokens, if so. is_causal: whether the model's is."""
    n_tokens = len(request.prompt_token_ids)
    # an answer needs room for at least one token
    if not 0 < n_tokens <= n_ctx - request.is_answered:
        return ContextOverflow(
            f"the prompt has {counted(n_tokens, 'token')} and the context holds {n_ctx}; "
            "shorten the prompt or load the model with a larger context"
        )
    if is_causal:
        return None
    if request.pooling is None:
        return InvalidParameter("this model makes embeddings only, because it reads a text in both directions")
    if n_tokens > MAX_ROWS:
        return ContextOverflow(
            f"the text has {counted(n_tokens, 'token')}; a model that reads in both directions takes at most {MAX_ROWS}"
        )
    return None
