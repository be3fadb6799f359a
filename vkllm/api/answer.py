"""An answer as it comes and when it is done: token events from the engine become text.

It knows tokens, stop strings and logprobs; it does not know prompts, templates, files or how the engine runs, and what
an answer is made of text/answers finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self, TypedDict

from vkllm.engine.events import Event, Failed, Finished, PromptProgress, RunStats, Token
from vkllm.engine.requests import Request
from vkllm.errors import VkllmError, counted
from vkllm.text.answers.forced import ForcedCall
from vkllm.text.answers.parser import AnswerParser
from vkllm.text.answers.parts import CutCall, Parts, ToolCall
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

    text: what the model says. reasoning, tool_calls: what a chat's model thinks before that, and which of the given
    tools it calls, in the form that its template shows; calls that are not complete or not in that form stay text, and
    so does all of an answer to `generate` or with a grammar.
    token_ids: every token generated; a stop token is the last of them, and no part of `text`. `text` ends
    before a stop string, though token_ids hold the tokens that completed it. logprobs: one entry a token,
    or None where they were not asked for. finish_reason: "stop" (stop token or string, or the answer's grammar is
    complete), "length" (max_tokens, or the context is full) or "cancelled". stop_string: the one that ended it, if one
    did. cut_call: the call that `text` begins, where one had to come and the limit cut it.

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
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    stop_string: str | None = None
    cut_call: CutCall | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to be appended to the conversation before the next question or a tool's result.

        >>> question = {"role": "user", "content": "What is the capital of France?"}
        >>> llm.chat([question], max_tokens=7, temperature=0).message
        {'role': 'assistant', 'content': 'The capital of France is Paris.'}
        """
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.as_message_part() for call in self.tool_calls]
        return message

    def with_cut_call(self) -> Generation:
        """The same with the cut call among the calls and not in the text, as OpenAI's and Anthropic's APIs have it."""
        if self.cut_call is None:
            return self
        return replace(self, text="", tool_calls=[*self.tool_calls, self.cut_call], cut_call=None)


class Piece(str):
    """Some text of an answer, with the tokens received since the piece before it.

    reasoning, tool_calls: what else came of a chat's answer; the text is empty where only that came. A call comes when
    it is complete. cut_call: the one that the text begins, as in `Generation`. progress: how far the prompt has been
    run, where that was asked for; nothing else comes with it.

    >>> for piece in llm.stream("The capital of France is", max_tokens=2, temperature=0):
    ...     print(repr(piece), len(piece.token_ids))
    ' Paris' 1
    '.' 1
    """

    token_ids: list[int]
    logprobs: list[Logprob] | None
    reasoning: str
    tool_calls: list[ToolCall]
    progress: PromptProgress | None
    cut_call: CutCall | None

    def __new__(
        cls,
        text: str,
        token_ids: Sequence[int] = (),
        logprobs: Sequence[Logprob] | None = None,
        reasoning: str = "",
        tool_calls: Sequence[ToolCall] = (),
        progress: PromptProgress | None = None,
        cut_call: CutCall | None = None,
    ) -> Self:
        """A str, so that it prints and joins like one."""
        piece = super().__new__(cls, text)
        piece.token_ids = list(token_ids)
        piece.logprobs = None if logprobs is None else list(logprobs)
        piece.reasoning = reasoning
        piece.tool_calls = list(tool_calls)
        piece.progress = progress
        piece.cut_call = cut_call
        return piece

    @property
    def is_text(self) -> bool:
        """Whether it only adds text."""
        return not (self.reasoning or self.tool_calls or self.progress or self.cut_call)

    def followed_by(self, other: Piece) -> Piece:
        """Both as one piece, if both only add text."""
        logprobs = None if self.logprobs is None else [*self.logprobs, *(other.logprobs or ())]
        return Piece(self + other, [*self.token_ids, *other.token_ids], logprobs)

    def with_cut_call(self) -> Piece:
        """As `Generation.with_cut_call`."""
        if self.cut_call is None:
            return self
        return Piece("", self.token_ids, self.logprobs, self.reasoning, [*self.tool_calls, self.cut_call])


OnToken = Callable[[Piece], object]
"""Called with each piece of an answer as it comes; an exception in it cancels the request and is raised."""


class AnswerText:
    """One answer, put together event by event. It knows no engine: threads and event loops pass it the events.

    is_over: no more pieces come. generation: the whole answer once it ended. error: what ended it early. is_stopped:
    a stop string came, or the last call that there may be, which the engine does not know: whoever passes the events
    cancels the request.
    """

    def __init__(
        self,
        request: Request,
        detokenizer: Detokenizer,
        token_text: Callable[[int], str],
        parser: AnswerParser | ForcedCall | None = None,
        *,
        most_calls: int | None = None,
    ) -> None:
        """parser: what takes the answer apart; without one, all of it is text. most_calls: after so many calls of tools
        the answer ends; None is no limit."""
        self.request = request
        self.is_over = False
        self.generation: Generation | None = None
        self.error: VkllmError | None = None
        self._detokenizer = detokenizer
        self._token_text = token_text
        self._stops = StopStrings(request.params.stop)
        self._parser = parser
        self._most_calls = most_calls
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: list[ToolCall] = []
        self._cut_call: CutCall | None = None
        self._token_ids: list[int] = []
        self._logprobs: list[Logprob] = []
        self._n_in_pieces = 0

    def tell_progress(self) -> None:
        """Asks for pieces that say how far the prompt is, before the request is sent."""
        self.request = replace(self.request, tells_progress=True)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string came, or as many calls of tools as there may be."""
        return self._stops.is_matched or self._has_all_calls

    @property
    def _has_all_calls(self) -> bool:
        return self._most_calls is not None and len(self._tool_calls) >= self._most_calls

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
        parts = Parts()
        match event:
            case Failed(error=error):
                self.is_over, self.error = True, error
                raise error
            case PromptProgress() if not self.is_over:
                return Piece("", progress=event)
            case Finished():
                text = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
                parts = self._take_apart(text, is_last=True)
                if self.is_stopped or event.reason != "length":
                    parts = parts._replace(cut_call=None)
                self._cut_call = parts.cut_call
                self._finish(event)
            case Token() if not self.is_over:
                parts = self._take_apart(self._take(event))
        if not any(parts):
            return None
        start, self._n_in_pieces = self._n_in_pieces, len(self._token_ids)
        logprobs = None if self.request.params.logprobs is None else self._logprobs[start:]
        token_ids = self._token_ids[start:]
        return Piece(parts.text, token_ids, logprobs, parts.reasoning, parts.tool_calls, cut_call=parts.cut_call)

    def _take_apart(self, text: str, *, is_last: bool = False) -> Parts:
        """The parts of the answer that are clear with this text, which are kept."""
        if self._parser is None:
            parts = Parts(text=text)
        else:
            parts = self._parser.push(text)
            if is_last:
                parts = parts.followed_by(self._parser.finish())
        if self._most_calls is not None:
            parts = parts._replace(tool_calls=parts.tool_calls[: self._most_calls - len(self._tool_calls)])
        self._reasoning.append(parts.reasoning)
        self._text.append(parts.text)
        self._tool_calls += parts.tool_calls
        return parts

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
            finish_reason="stop" if self.is_stopped else event.reason,
            stats=event.stats,
            reasoning="".join(self._reasoning),
            tool_calls=self._tool_calls,
            stop_string=self._stops.matched,
            cut_call=self._cut_call,
        )
