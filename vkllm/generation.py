"""An answer as it comes and when it is done: token events from the engine become text.

It knows tokens, stop strings and logprobs; it does not know prompts, templates, files or how the engine runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypedDict

from vkllm.engine.process import EngineProcess
from vkllm.engine.request import Event, Failed, Finished, Request, RunStats, Token
from vkllm.errors import VkllmError
from vkllm.text.stop import StopStrings
from vkllm.text.tokenizer import Detokenizer

FinishReason = Literal["stop", "length", "cancelled"]


class TopLogprob(NamedTuple):
    """A token that could have come, and the natural logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


class Logprob(NamedTuple):
    """A token that came, the logarithm of its probability, and the likeliest ones in its place, best first."""

    token_id: int
    text: str
    logprob: float
    top: list[TopLogprob]


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`, as keyword arguments; `stop` may also be one string."""

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
    logprobs: int | None
    context_shift: bool


@dataclass(frozen=True)
class Generation:
    """A whole answer.

    token_ids: every token generated; a stop token is the last of them, and no part of `text`. `text` ends
    before a stop string, though token_ids hold the tokens that completed it. logprobs: one entry a token,
    or None where they were not asked for. finish_reason: "stop" (stop token or string), "length"
    (max_tokens, or the context is full) or "cancelled".
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    logprobs: list[Logprob] | None
    finish_reason: FinishReason
    stats: RunStats


class Piece(str):
    """Some text of an answer, never empty, with the tokens received since the piece before it."""

    token_ids: list[int]
    logprobs: list[Logprob] | None

    def __new__(cls, text: str, token_ids: Sequence[int] = (), logprobs: Sequence[Logprob] | None = None) -> Self:
        """A str, so that it prints and joins like one."""
        piece = super().__new__(cls, text)
        piece.token_ids = list(token_ids)
        piece.logprobs = None if logprobs is None else list(logprobs)
        return piece


class Stream(Iterator[Piece]):
    """The pieces of one answer, as they come; `result()` is the whole of it.

    Closing a stream before its end, leaving its `with` block, dropping the last reference to it, or Ctrl-C
    while it waits cancels the request. Made by `LLM.stream`; to be used by one thread at a time.
    """

    def __init__(
        self,
        engine: EngineProcess,
        request: Request,
        events: SimpleQueue[Event],
        detokenizer: Detokenizer,
        token_text: Callable[[int], str],
    ) -> None:
        self._engine = engine
        self._request = request
        self._events = events
        self._detokenizer = detokenizer
        self._token_text = token_text
        self._stops = StopStrings(request.params.stop)
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[Logprob] = []
        self._n_in_pieces = 0
        self._is_over = False
        self._generation: Generation | None = None
        self._error: VkllmError | None = None

    def __next__(self) -> Piece:
        """The next piece. Raises DeviceLost and other errors of the engine."""
        while not self._is_over:
            if text := self._advance():
                start, self._n_in_pieces = self._n_in_pieces, len(self._token_ids)
                logprobs = None if self._request.params.logprobs is None else self._logprobs[start:]
                return Piece(text, self._token_ids[start:], logprobs)
        raise StopIteration

    def result(self) -> Generation:
        """The whole answer; waits for what is left of it. After `close()` it is what there was until then."""
        while self._generation is None:
            if self._error is not None:
                raise self._error
            self._advance()
        return self._generation

    def close(self) -> None:
        """Cancels the request unless it is done. There are no pieces after this."""
        if not self._is_over:
            self._is_over = True
            self._engine.cancel(self._request.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _advance(self) -> str:
        """Takes in one event and returns the text that it adds to the answer."""
        try:
            event = self._events.get()
        except KeyboardInterrupt:
            self.close()
            raise
        match event:
            case Failed(error=error):
                self._is_over, self._error = True, error
                raise error
            case Finished():
                text = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
                self._text.append(text)
                self._finish(event)
                return text
            case Token() if not self._is_over:
                text = self._take(event)
                self._text.append(text)
                return text
        return ""

    def _take(self, token: Token) -> str:
        self._token_ids.append(token.token_id)
        if token.logprob is not None:
            name = self._token_text
            top = [TopLogprob(other.token_id, name(other.token_id), other.logprob) for other in token.top_logprobs]
            self._logprobs.append(Logprob(token.token_id, name(token.token_id), token.logprob, top))
        if token.token_id in self._request.stop_token_ids:
            return ""
        text = self._stops.push(self._detokenizer.push(token.token_id))
        if self._stops.is_matched:
            self.close()
        return text

    def _finish(self, event: Finished) -> None:
        self._is_over = True
        self._generation = Generation(
            text="".join(self._text),
            token_ids=self._token_ids,
            prompt_token_ids=list(self._request.prompt_token_ids),
            logprobs=None if self._request.params.logprobs is None else self._logprobs,
            finish_reason="stop" if self._stops.is_matched else event.reason,
            stats=event.stats,
        )
