"""A request while it waits and runs: its tokens, how many of them have been run, and its counts."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vkllm.engine.constraint import Constraint
from vkllm.engine.events import PromptProgress, RunStats, Token
from vkllm.engine.prefix_cache import Held
from vkllm.engine.requests import Request
from vkllm.engine.sampler import Sampler
from vkllm.engine.speculation.drafter import Drafter
from vkllm.errors import ContextOverflow, InvalidParameter, VkllmError, counted


@dataclass(eq=False)
class TokenSequence:
    """A request with its tokens. n_ctx: how many it may have. is_whole: all rows run at once, even those behind
    the last that is wanted, because each token sees all others.

    tokens: those that are known: the prompt and what was generated, less what shifts dropped. n_run: how many tokens,
    known or not, steps have run that were submitted. n_in_flight: tokens that submitted steps choose. A step that runs
    ahead takes a token that the step before it chooses on the GPU. is_decoding: the prompt, or what has to be computed
    again, has been run. held: what it holds of the cache; None: it waits. number: which of the sequences that run at
    once, for the GPU. choosing: the CPU's work for the next token. hidden_sum: of the rows that its embedding is made
    of. n_reported: rows of a prompt without an answer whose results are known. is_drafting: the step in flight has
    drafts. row_before: as in `vkllm.gpu.program.step.Part`, of the next step. stepped_at: a count that grows with each
    step. n_told: tokens of the prompt whose run was reported. n_drafts, n_steps, step_share: see `RunStats`.
    """

    request: Request
    n_ctx: int
    submitted_s: float
    is_whole: bool = False
    order: int = 0
    tokens: list[int] = field(default_factory=list)
    n_run: int = 0
    n_in_flight: int = 0
    is_decoding: bool = False
    is_over: bool = False
    held: Held | None = None
    number: int = -1
    choosing: Future[list[Token | InvalidParameter] | Constraint] | None = None
    constraint: Constraint | None = None
    drafter: Drafter | None = None
    row_before: int | None = None
    is_drafting: bool = False
    n_cached: int | None = None
    n_generated: int = 0
    n_shifts: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    n_drafts: int = 0
    n_steps: int = 0
    step_share: float = 0.0
    n_reported: int = 0
    n_told: int = -1
    stepped_at: int = 0
    started_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    hidden_sum: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_token_ids)
        self.sampler = Sampler(self.request.params, self.request.prompt_token_ids)
        params = self.request.params
        self.needs_logits = params.logprobs is not None or not self.sampler.suits_gpu
        self.can_run_ahead = not self.needs_logits and self.request.grammar is None
        self.n_reported = self.wanted_rows().start

    def wanted_rows(self) -> range:
        """The rows of a prompt whose results are wanted: those before the first may come from the cache, none after
        the last has to run."""
        request, n = self.request, len(self.request.prompt_token_ids)
        if request.score_from is not None:
            return range(request.score_from - 1, n - 1)
        match request.pooling:
            case "mean":
                return range(n)
            case "cls":
                return range(1)
            case "last" | None:
                return range(n - 1, n)

    @property
    def n_prompt_rows(self) -> int:
        """Rows of its prompt, or of what has to be computed again, that are still to be run."""
        if self.is_decoding or self.n_in_flight or self.choosing is not None:
            return 0
        has_all = self.request.is_answered or self.is_whole
        end = len(self.tokens) if has_all else self.wanted_rows().stop
        return end - self.n_run

    @property
    def n_left(self) -> int:
        """How many tokens it may get at most, those in flight included."""
        n_left = self.n_ctx - len(self.tokens)
        max_tokens = self.request.params.max_tokens
        return n_left if max_tokens is None else min(n_left, max_tokens - self.n_generated)

    @property
    def can_decode(self) -> bool:
        """Whether the row of its next token can be submitted now."""
        if not self.is_decoding or self.choosing is not None or self.n_in_flight >= self.n_left:
            return False
        return (self.can_run_ahead and not self.is_drafting) or not self.n_in_flight

    @property
    def n_cacheable(self) -> int:
        """Known tokens whose keys and values are cached when all submitted steps have run."""
        return min(len(self.tokens), self.n_run)

    def takes_part(self, n_sequences: int, now_s: float, start: int) -> list[PromptProgress]:
        """A step of so many sequences is submitted, this one among them from token `start` on. Returns what to tell."""
        is_first, self.started_s = not self.started_s, self.started_s or now_s
        self.n_steps += 1
        self.step_share += 1 / n_sequences
        return self.progress(start, now_s) if is_first else []

    def progress(self, n_processed: int, now_s: float) -> list[PromptProgress]:
        """What is to be told of so many tokens of the prompt, if they are more than those that were told already."""
        request = self.request
        if not request.tells_progress or self.n_generated or n_processed <= self.n_told:
            return []
        self.n_told = n_processed
        n_prompt, n_cached = len(request.prompt_token_ids), self.n_cached or 0
        return [PromptProgress(request.id, n_prompt, n_cached, n_processed, now_s - self.started_s)]

    def stats(self) -> RunStats:
        """Counts and seconds so far."""
        has_token = self.first_token_s > 0
        return RunStats(
            n_prompt=len(self.request.prompt_token_ids),
            n_cached=self.n_cached or 0,
            n_generated=self.n_generated,
            prompt_s=self.first_token_s - self.started_s if has_token else 0.0,
            first_token_s=self.first_token_s - self.submitted_s if has_token else 0.0,
            generate_s=self.last_token_s - self.first_token_s,
            n_shifts=self.n_shifts,
            n_drafted=self.n_drafted,
            n_accepted=self.n_accepted,
            n_drafts=self.n_drafts,
            n_steps=self.n_steps,
            step_share=self.step_share,
            queue_s=self.started_s - self.submitted_s if self.started_s else 0.0,
        )


def shifted(tokens: list[int], n_keep: int) -> list[int]:
    """What stays of a full context: the first n_keep tokens, and the newer half of the others or one token less."""
    kept, others = tokens[:n_keep], tokens[n_keep:]
    return [*kept, *others[-(-len(others) // 2) :]]


def refusal(request: Request, n_ctx: int, longest_text: int | None) -> VkllmError | None:
    """Why a request cannot be run with a context of n_ctx tokens, if so. longest_text: tokens of a text that reads in
    both directions; None where the model does not."""
    n_tokens = len(request.prompt_token_ids)
    # an answer needs room for at least one token
    if not 0 < n_tokens <= n_ctx - request.is_answered:
        return ContextOverflow(
            f"the prompt has {counted(n_tokens, 'token')} and the context holds {n_ctx}; "
            "shorten the prompt or load the model with a larger context"
        )
    if longest_text is None:
        return None
    if request.pooling is None:
        return InvalidParameter("this model makes embeddings only, because it reads a text in both directions")
    if n_tokens > longest_text:
        return ContextOverflow(
            f"the text has {counted(n_tokens, 'token')}; a model that reads in both directions takes at most "
            f"{longest_text} on several devices: cut the text into parts, or take one device"
        )
    return None
