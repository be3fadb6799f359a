"""One call of `create(...)`: its parameters become requests, and the answers to these OpenAI's objects.

It knows parameters and shapes; who sends requests and waits for answers, a thread or an event loop, is create.py's.
Parameters have the openai package's names, and top_k, min_p and repeat_penalty those of llama.cpp's server. One that is
not known is refused: a call in Python has no reason to carry it but a mistake.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Generic, TypedDict, TypeVar, cast

from pydantic import BaseModel

from vkllm.api.answer import AnswerText, Generation, Piece, SamplingOptions
from vkllm.api.openai.completions import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChunkChoice,
    Completion,
    Delta,
    TextChoice,
    Usage,
    chat_logprobs,
    finish_reason,
    logprobs_of_text,
    text_logprobs,
    usage_of,
)
from vkllm.api.prompts import Message, Prompts, as_batch
from vkllm.errors import InvalidParameter
from vkllm.text.messages import plain_messages

_MAX_CHOICES = 128  # as OpenAI has it
_ANY_OBJECT = {"type": "object"}

WholeT = TypeVar("WholeT")
ChunkT = TypeVar("ChunkT")


class CommonOptions(TypedDict, total=False):
    """What both kinds of call take; None is the default of `SamplingParams`."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repeat_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    n: int | None
    stream_options: Mapping[str, bool] | None


class ChatOptions(CommonOptions, total=False):
    """The parameters of `chat.completions.create` beside messages, model and stream."""

    max_completion_tokens: int | None
    logprobs: bool | None
    top_logprobs: int | None
    response_format: Mapping[str, Any] | None
    tools: Sequence[Message] | None


class TextOptions(CommonOptions, total=False):
    """The parameters of `completions.create` beside prompt, model and stream."""

    logprobs: int | None


_OUR_NAMES = {"repeat_penalty": "repetition_penalty", "max_completion_tokens": "max_tokens"}
_SAMPLING = CommonOptions.__annotations__.keys() - {"n", "stream_options"} | {"max_completion_tokens"}


class Call(ABC, Generic[WholeT, ChunkT]):
    """A call's answers, still empty, in the order of its choices, and the objects that they become."""

    def __init__(self, prompts: Prompts, kind: str, options: dict[str, Any]) -> None:
        self.answers: list[AnswerText] = []
        self.n_choices = _checked_n(options.get("n"))
        self.includes_usage = _includes_usage(options.get("stream_options"))
        self._prompts = prompts
        self._head: dict[str, Any] = {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": prompts.model,
        }

    @abstractmethod
    def first_chunk(self, index: int) -> ChunkT | None:
        """What comes before the first text of an answer."""

    @abstractmethod
    def chunk(self, index: int, piece: Piece) -> ChunkT:
        """Some text of an answer."""

    @abstractmethod
    def last_chunk(self, index: int, generation: Generation) -> ChunkT:
        """The end of an answer."""

    @abstractmethod
    def usage_chunk(self, generations: Sequence[Generation]) -> ChunkT:
        """What comes last if it was asked for."""

    @abstractmethod
    def whole(self, generations: Sequence[Generation]) -> WholeT:
        """All answers."""

    def _usage(self, generations: Sequence[Generation]) -> Usage:
        n = self.n_choices
        return usage_of([generations[start : start + n] for start in range(0, len(generations), n)])

    def _seeded(self, sampling: dict[str, Any], choice: int) -> SamplingOptions:
        """The options of one of several answers to a prompt, which would be the same with the same seed."""
        seed = sampling.get("seed", self._prompts.defaults.seed)
        if seed is not None and choice:
            sampling = {**sampling, "seed": (seed + choice) % 2**64}
        return cast(SamplingOptions, sampling)


class ChatCall(Call[ChatCompletion, ChatCompletionChunk]):
    """A call of `chat.completions.create`. Raises InvalidParameter, ContextOverflow."""

    def __init__(self, prompts: Prompts, messages: Sequence[Message | BaseModel], options: ChatOptions) -> None:
        given = _given(options, ChatOptions)
        super().__init__(prompts, "chatcmpl", given)
        if "max_tokens" in given and "max_completion_tokens" in given:
            raise InvalidParameter("max_tokens and max_completion_tokens are the same; give one of them")
        sampling = _sampling(given)
        if given.get("logprobs"):
            sampling["logprobs"] = given.get("top_logprobs", 0)
        elif "top_logprobs" in given:
            raise InvalidParameter("top_logprobs needs logprobs=True")
        if (schema := _schema(given.get("response_format"))) is not None:
            sampling["json_schema"] = schema
        plain = plain_messages(messages)
        for choice in range(self.n_choices):
            options_of_choice = self._seeded(sampling, choice)
            self.answers.append(prompts.of_chat(plain, None, options_of_choice, given.get("tools")))

    def first_chunk(self, index: int) -> ChatCompletionChunk:
        """Says that the model speaks."""
        return self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))

    def chunk(self, index: int, piece: Piece) -> ChatCompletionChunk:
        """Some content."""
        logprobs = chat_logprobs(piece.logprobs, self._prompts.tokenizer)
        return self._chunk(ChunkChoice(index=index, delta=Delta(content=piece), logprobs=logprobs))

    def last_chunk(self, index: int, generation: Generation) -> ChatCompletionChunk:
        """Says why the answer ended."""
        return self._chunk(ChunkChoice(index=index, delta=Delta(), finish_reason=finish_reason(generation)))

    def usage_chunk(self, generations: Sequence[Generation]) -> ChatCompletionChunk:
        """No choices, but the counts."""
        return ChatCompletionChunk(**self._head, choices=[], usage=self._usage(generations))

    def whole(self, generations: Sequence[Generation]) -> ChatCompletion:
        """One choice an answer."""
        tokenizer = self._prompts.tokenizer
        choices = [
            ChatChoice(
                index=index,
                message=ChatMessage(content=generation.text),
                logprobs=chat_logprobs(logprobs_of_text(generation, tokenizer), tokenizer),
                finish_reason=finish_reason(generation),
            )
            for index, generation in enumerate(generations)
        ]
        return ChatCompletion(**self._head, choices=choices, usage=self._usage(generations))

    def _chunk(self, choice: ChunkChoice) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self._head, choices=[choice])


class TextCall(Call[Completion, Completion]):
    """A call of `completions.create`, with one prompt or several. Raises InvalidParameter, ContextOverflow."""

    def __init__(
        self, prompts: Prompts, prompt: str | Sequence[int] | list[str] | list[list[int]], options: TextOptions
    ) -> None:
        given = _given(options, TextOptions)
        super().__init__(prompts, "cmpl", given)
        sampling = _sampling(given)
        if (n_top := given.get("logprobs")) is not None:
            sampling["logprobs"] = n_top
        for each in as_batch(prompt)[0]:
            for choice in range(self.n_choices):
                self.answers.append(prompts.of_text(each, None, self._seeded(sampling, choice)))
        self._offsets = [0] * len(self.answers)

    def first_chunk(self, index: int) -> None:
        """Nothing: text needs no beginning."""

    def chunk(self, index: int, piece: Piece) -> Completion:
        """Some text."""
        logprobs = text_logprobs(piece.logprobs, self._offsets[index])
        self._offsets[index] += len(piece)
        return self._completion(TextChoice(index=index, text=piece, logprobs=logprobs))

    def last_chunk(self, index: int, generation: Generation) -> Completion:
        """Says why the text ended."""
        return self._completion(TextChoice(index=index, text="", finish_reason=finish_reason(generation)))

    def usage_chunk(self, generations: Sequence[Generation]) -> Completion:
        """No choices, but the counts."""
        return Completion(**self._head, choices=[], usage=self._usage(generations))

    def whole(self, generations: Sequence[Generation]) -> Completion:
        """One choice an answer, prompt by prompt."""
        choices = [
            TextChoice(
                index=index,
                text=generation.text,
                logprobs=text_logprobs(logprobs_of_text(generation, self._prompts.tokenizer), 0),
                finish_reason=finish_reason(generation),
            )
            for index, generation in enumerate(generations)
        ]
        return Completion(**self._head, choices=choices, usage=self._usage(generations))

    def _completion(self, choice: TextChoice) -> Completion:
        return Completion(**self._head, choices=[choice])


def _given(options: Mapping[str, Any], known: type[Any]) -> dict[str, Any]:
    """The options that are not None. Raises InvalidParameter for names that are not known."""
    names = known.__annotations__
    for name in options:
        if name not in names:
            close = get_close_matches(name, names, 1)
            advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(names))}"
            raise InvalidParameter(f"{name} is no parameter that vkllm knows; {advice}")
    return {name: value for name, value in options.items() if value is not None}


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    return {_OUR_NAMES.get(name, name): value for name, value in given.items() if name in _SAMPLING}


def _checked_n(n: Any) -> int:
    if n is None:
        return 1
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= _MAX_CHOICES:
        raise InvalidParameter(f"n must be a whole number between 1 and {_MAX_CHOICES}, not {n!r}")
    return n


def _includes_usage(stream_options: Any) -> bool:
    if stream_options is None:
        return False
    if not isinstance(stream_options, Mapping) or stream_options.keys() - {"include_usage"}:
        raise InvalidParameter(f'stream_options must be {{"include_usage": True}} or left out, not {stream_options!r}')
    return bool(stream_options.get("include_usage"))


def _schema(response_format: Any) -> Any:
    """The JSON schema that answers must follow, or None."""
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return _ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return schema
    raise InvalidParameter(
        'response_format must be {"type": "text"}, {"type": "json_object"} or '
        f'{{"type": "json_schema", "json_schema": {{"name": ..., "schema": ...}}}}, not {response_format!r}'
    )
