"""One call of `create(...)`: its parameters become requests, and the answers to these OpenAI's objects.

It knows requests and shapes; parameters are options.py's, and who sends requests and waits for answers, a thread or an
event loop, is create.py's.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel

from vkllm.api.answer import AnswerText, Generation, Piece, SamplingOptions
from vkllm.api.openai.completions import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    Completion,
    Delta,
    TextChoice,
    Usage,
    chat_logprobs,
    delta_of,
    finish_reason,
    logprobs_of_text,
    message_of,
    text_logprobs,
    usage_of,
)
from vkllm.api.openai.options import (
    ChatCompletionOptions,
    TextOptions,
    chat_logprobs_option,
    choice_of_tools,
    given_options,
    includes_usage,
    n_choices,
    sampling_options,
    schema_of,
    template_variables,
)
from vkllm.api.prompts import Message, Prompts, as_batch
from vkllm.engine.params import RANDOM_SEED
from vkllm.errors import InvalidParameter
from vkllm.parameters import truth
from vkllm.text.messages import plain_messages

WholeT = TypeVar("WholeT")
ChunkT = TypeVar("ChunkT")


class Call(ABC, Generic[WholeT, ChunkT]):
    """A call's answers, still empty, in the order of its choices, and the objects that they become."""

    def __init__(self, prompts: Prompts, kind: str, options: dict[str, Any], *, is_stream: bool) -> None:
        self.answers: list[AnswerText] = []
        self.n_choices = n_choices(options)
        self.includes_usage = includes_usage(options, is_stream=is_stream)
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
        if seed not in (None, RANDOM_SEED) and choice:
            sampling = {**sampling, "seed": (seed + choice) % 2**64}
        return cast(SamplingOptions, sampling)


class ChatCall(Call[ChatCompletion, ChatCompletionChunk]):
    """A call of `chat.completions.create`. Raises InvalidParameter, ContextOverflow."""

    def __init__(
        self,
        prompts: Prompts,
        messages: Iterable[Message | BaseModel],
        options: ChatCompletionOptions,
        *,
        is_stream: bool = False,
    ) -> None:
        given = given_options(options, ChatCompletionOptions)
        super().__init__(prompts, "chatcmpl", given, is_stream=is_stream)
        sampling = sampling_options(given) | {"logprobs": chat_logprobs_option(given)}
        if (schema := schema_of(given.get("response_format"))) is not None:
            if "json_schema" in sampling:
                raise InvalidParameter("response_format and json_schema are the same; give one of them")
            sampling["json_schema"] = schema
        tools, choice, variables = given.get("tools"), choice_of_tools(given), template_variables(given)
        plain = plain_messages(messages)
        for place in range(self.n_choices):
            options_of_choice = self._seeded(sampling, place)
            self.answers.append(prompts.of_chat(plain, None, options_of_choice, tools, variables, choice))
        self._n_calls = [0] * len(self.answers)

    def first_chunk(self, index: int) -> ChatCompletionChunk:
        """Says that the model speaks."""
        return self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))

    def chunk(self, index: int, piece: Piece) -> ChatCompletionChunk:
        """Some reasoning, content or calls."""
        logprobs = chat_logprobs(piece.logprobs, self._prompts.tokenizer)
        delta = delta_of(piece, self._n_calls[index])
        self._n_calls[index] += len(piece.tool_calls)
        return self._chunk(ChunkChoice(index=index, delta=delta, logprobs=logprobs))

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
                message=message_of(generation),
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
        self,
        prompts: Prompts,
        prompt: str | Sequence[int] | list[str] | list[list[int]],
        options: TextOptions,
        *,
        is_stream: bool = False,
    ) -> None:
        given = given_options(options, TextOptions)
        super().__init__(prompts, "cmpl", given, is_stream=is_stream)
        sampling = sampling_options(given) | {"logprobs": given.get("logprobs")}
        self._echoes = truth("echo", given.get("echo", False))
        if self._echoes and not (sampling["logprobs"] is None or sampling["logprobs"] is False):  # 0 asks for some
            raise InvalidParameter("echo has no logprobs of the prompt; leave one of them out, or use llm.score")
        for each in as_batch(prompt)[0]:
            for choice in range(self.n_choices):
                self.answers.append(prompts.of_text(each, None, self._seeded(sampling, choice)))
        self._offsets = [0] * len(self.answers)

    def first_chunk(self, index: int) -> Completion | None:
        """The prompt, if it is to be repeated: text needs no other beginning."""
        return self._completion(TextChoice(index=index, text=self._echo(index))) if self._echoes else None

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
                text=self._echo(index) + generation.text,
                logprobs=text_logprobs(logprobs_of_text(generation, self._prompts.tokenizer), 0),
                finish_reason=finish_reason(generation),
            )
            for index, generation in enumerate(generations)
        ]
        return Completion(**self._head, choices=choices, usage=self._usage(generations))

    def _echo(self, index: int) -> str:
        """What comes before an answer's own text."""
        if not self._echoes:
            return ""
        return self._prompts.tokenizer.decode(list(self.answers[index].request.prompt_token_ids))

    def _completion(self, choice: TextChoice) -> Completion:
        return Completion(**self._head, choices=[choice])
