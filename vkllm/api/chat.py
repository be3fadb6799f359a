"""`llm.chat`: a function that answers conversations, and the place of `llm.chat.completions.create(...)`.

It knows what LLM and AsyncLLM have in common for that: prompts and the engine. How answers look in OpenAI's shape is
api/openai/calls.py's.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from vkllm.api.answer import Generation, OnToken, SamplingOptions
from vkllm.api.async_stream import AsyncStream, Opened
from vkllm.api.prompts import Message, Prompts
from vkllm.api.stream import Stream
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess

if TYPE_CHECKING:
    from vkllm.api.openai.create import AsyncChatCompletions, ChatCompletions


class Chat:
    """Answers conversations; it is called like a method: `llm.chat(messages, max_tokens=20)`."""

    def __init__(self, engine: EngineProcess, prompts: Prompts) -> None:
        self._engine = engine
        self._prompts = prompts

    @overload
    def __call__(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: Literal[False] = False,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation: ...

    @overload
    def __call__(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: Literal[True],
        **options: Unpack[SamplingOptions],
    ) -> Stream: ...

    def __call__(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: bool = False,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation | Stream:
        """Answers a conversation: messages like {"role": "user", "content": "Hello"}, through the model's template.

        Contents may be text, None or lists of text parts, and messages objects of the openai package. What they say is
        text, even if it reads like a special token. tools: function descriptions in OpenAI's form, for templates that
        know them. With stream=True it returns a `Stream`. on_token is called with each `Piece`, as in `LLM.generate`.
        With context_shift a conversation that is too long loses its oldest turns, and an answer that fills the context
        the middle of it; system messages stay.
        Raises what `generate` raises, InvalidParameter for messages that the template refuses and tools that it has no
        place for, and ModelFileError for a template that exceeds its limits of time and memory.
        """
        answer = Stream(self._engine, self._prompts.of_chat(messages, params, options, tools))
        return answer if stream else answer.consume(on_token)

    @property
    def completions(self) -> ChatCompletions:
        """`completions.create(messages=...)` takes and returns what OpenAI's API does."""
        from vkllm.api.openai.create import ChatCompletions  # with pydantic, which takes 0.2 s to import

        return ChatCompletions(self._engine, self._prompts)


class AsyncChat:
    """As `Chat`: `await llm.chat(messages)` is a `Generation`, `llm.chat(messages, stream=True)` an `AsyncStream`."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    @overload
    def __call__(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: Literal[False] = False,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Coroutine[Any, Any, Generation]: ...

    @overload
    def __call__(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: Literal[True],
        **options: Unpack[SamplingOptions],
    ) -> AsyncStream: ...

    def __call__(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: bool = False,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Coroutine[Any, Any, Generation] | AsyncStream:
        """Answers a conversation; parameters and errors as for `LLM.chat`. on_token may be a coroutine function."""
        answer = AsyncStream(self._opened, lambda prompts: prompts.of_chat(messages, params, options, tools))
        return answer if stream else answer.consume(on_token)

    @property
    def completions(self) -> AsyncChatCompletions:
        """`await completions.create(messages=...)` takes and returns what OpenAI's API does."""
        from vkllm.api.openai.create import AsyncChatCompletions  # with pydantic, which takes 0.2 s to import

        return AsyncChatCompletions(self._opened)
