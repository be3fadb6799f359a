"""An answer as it comes and when it is done: token events from the engine become text.

It knows tokens, stop strings and logprobs; it does not know prompts, templates, files or how the engine runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, TypedDict

from vkllm.engine.events import Event, Failed, Finished, RunStats, Token
from vkllm.engine.requests import Request
from vkllm.errors import VkllmError, counted
from vkllm.text.stop import StopStrings
from vkllm.text.tokenizer import Detokenizer

FinishReason = Literal["stop", "length", "cancelled"]


class TopLogprob(NamedTuple):
    """A token that could have come, and the natural logarithm of its probability.

    >>> answer = llm.generate("The capital of France is", max_tokens=1, temperature=0, logprobs=3)
    >>> [top.text for top in answer.logprobs[0].top]
    [' Paris', ...]
    """

    token_id: int
    text: str
    logprob: float


class Logprob(NamedTuple):
    """A token that came, the logarithm of its probability, and the likeliest ones in its place, best first.

    >>> answer = llm.generate("The capital of France is", max_tokens=1, temperature=0, logprobs=0)
    >>> print(answer.logprobs[0].text, round(answer.logprobs[0].logprob, 1))
     Paris -0...
    """

    token_id: int
    text: str
    logprob: float
    top: list[TopLogprob]


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`, as keyword arguments; `stop` may also be one string, `json_schema` the schema.

    origin: whose text it is, such as a user's id; what was cached for one origin is never used for another.
    """

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | bool | None
    context_shift: bool
    json_schema: str | Mapping[str, Any] | bool | type | None
    regex: str | None
    grammar: str | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    origin: str


@dataclass(frozen=True)
class Generation:
    """A complete answer.

    token_ids: every token generated; a stop token is the last of them, and no part of `text`. `text` ends
    before a stop string, though token_ids hold the tokens that completed it. logprobs: one entry a token,
    or None where they were not asked for. finish_reason: "stop" (stop token or string, or the answer's grammar is
    complete), "length" (max_tokens, or the context is full) or "cancelled".

    >>> answer = llm.generate("The capital of France is", max_tokens=1, temperature=0)
    >>> answer.text, len(answer.token_ids), answer.finish_reason
    (' Paris', 1, 'length')
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    logprobs: list[Logprob] | None
    finish_reason: FinishReason
    stats: RunStats


class Piece(str):
    """Some text of an answer, never empty, with the tokens received since the piece before it.

    >>> for piece in llm.stream("The capital of France is", max_tokens=2, temperature=0):
    ...     print(repr(piece), len(piece.token_ids))
    ' Paris' 1
    '.' 1
    """

    token_ids: list[int]
    logprobs: list[Logprob] | None

    def __new__(cls, text: str, token_ids: Sequence[int] = (), logprobs: Sequence[Logprob] | None = None) -> Self:
        """A str, so that it prints and joins like one."""
        piece = super().__new__(cls, text)
        piece.token_ids = list(token_ids)
        piece.logprobs = None if logprobs is None else list(logprobs)
        return piece


OnToken = Callable[[Piece], object]
"""Called with each piece of an answer as it comes; an exception in it cancels the request and is raised."""


class AnswerText:
    """One answer, put together event by event. It knows no engine: threads and event loops pass it the events.

    is_over: no more pieces come. generation: the whole answer once it ended. error: what ended it early. is_stopped:
    a stop string came, which the engine does not know: whoever passes the events cancels the request.
    """

    def __init__(self, request: Request, detokenizer: Detokenizer, token_text: Callable[[int], str]) -> None:
        self.request = request
        self.is_over = False
        self.generation: Generation | None = None
        self.error: VkllmError | None = None
        self._detokenizer = detokenizer
        self._token_text = token_text
        self._stops = StopStrings(request.params.stop)
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[Logprob] = []
        self._n_in_pieces = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string came."""
        return self._stops.is_matched

    @property
    def state(self) -> str:
        """How far it is, in words."""
        n = counted(len(self._token_ids), "token")
        if self.error is not None:
            return f"failed after {n}"
        if self.generation is not None:
            return f"ended after {n}: {self.generation.finish_reason}"
        return f"closed after {n}" if self.is_over else f"{n} so far"

    def push(self, event: Event) -> Piece | None:
        """Takes in one event and returns the piece that it completes, if any. Raises the error of a `Failed`."""
        text = ""
        match event:
            case Failed(error=error):
                self.is_over, self.error = True, error
                raise error
            case Finished():
                text = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
                self._text.append(text)
                self._finish(event)
            case Token() if not self.is_over:
                text = self._take(event)
                self._text.append(text)
        if not text:
            return None
        start, self._n_in_pieces = self._n_in_pieces, len(self._token_ids)
        return Piece(
            text, self._token_ids[start:], None if self.request.params.logprobs is None else self._logprobs[start:]
        )

    def _take(self, token: Token) -> str:
        self._token_ids.append(token.token_id)
        if token.logprob is not None:
            name = self._token_text
            top = [TopLogprob(other.token_id, name(other.token_id), other.logprob) for other in token.top_logprobs]
            self._logprobs.append(Logprob(token.token_id, name(token.token_id), token.logprob, top))
        if token.token_id in self.request.stop_token_ids:
            return ""
        return self._stops.push(self._detokenizer.push(token.token_id))

    def _finish(self, event: Finished) -> None:
        self.is_over = True
        self.generation = Generation(
            text="".join(self._text),
            token_ids=self._token_ids,
            prompt_token_ids=list(self.request.prompt_token_ids),
            logprobs=None if self.request.params.logprobs is None else self._logprobs,
            finish_reason="stop" if self._stops.is_matched else event.reason,
            stats=event.stats,
        )
