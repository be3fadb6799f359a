"""`llm.chat`: a function that answers conversations, and the place of `llm.chat.completions.create(...)`.

It is one class for LLM and AsyncLLM, which differ in the streams that they open. How answers look in OpenAI's shape is
api/openai/calls.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar, Unpack, overload

from vkllm.api.answer import AnswerText, Generation, OnToken, SamplingOptions
from vkllm.api.prompts import Message, Prompts, check_options
from vkllm.api.stream import Stream
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess, not_copied
from vkllm.parameters import checks_names, truth
from vkllm.text.answers.tool_choice import tool_choice as chosen_tools

if TYPE_CHECKING:
    from vkllm.api.openai.create import SyncChatCompletions

AnswerT = TypeVar("AnswerT")
StreamT = TypeVar("StreamT")
CompletionsT = TypeVar("CompletionsT")


class Chat(Generic[AnswerT, StreamT, CompletionsT]):
    """Answers conversations; it is called like a method: `llm.chat(messages, max_tokens=20)`.

    For an `AsyncLLM`, `await llm.chat(messages)` is a `Generation` and `llm.chat(messages, stream=True)` an
    `AsyncStream`.
    """

    def __init__(
        self,
        open_stream: Callable[[Callable[[Prompts], AnswerText], Callable[[], None]], StreamT],
        consume: Callable[[StreamT, OnToken | None], AnswerT],
        completions: Callable[[], CompletionsT],
    ) -> None:
        """open_stream: asks for the answer that its first argument makes; its second one checks the options before a
        model is loaded. consume: reads a stream to its end."""
        self._open_stream = open_stream
        self._consume = consume
        self._completions = completions

    def __repr__(self) -> str:
        return "<Chat: call it with messages, or use completions.create(messages=...)>"

    def __reduce__(self) -> NoReturn:
        raise not_copied("a Chat")

    @overload
    def __call__(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        stream: Literal[False] = False,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AnswerT: ...

    @overload
    def __call__(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        stream: Literal[True],
        **options: Unpack[SamplingOptions],
    ) -> StreamT: ...

    @checks_names(SamplingOptions)
    def __call__(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        stream: bool = False,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AnswerT | StreamT:
        """Answers a conversation: messages like {"role": "user", "content": "Hello"}, through the model's template.

        Contents may be text, None or lists of text parts, and messages objects of the openai package. What they say is
        text, even if it reads like a special token. tools: function descriptions in OpenAI's form, for templates that
        know them; the calls that the model writes are `Generation.tool_calls`, its thoughts `Generation.reasoning`.
        tool_choice: "auto", "none", "required" or OpenAI's form for one of the tools, for which the answer is a call of
        it, whatever the model would rather say.
        variables: what the template is given besides, such as {"enable_thinking": False}; with
        {"continues_last": True} the answer goes on where the last message, of the assistant, ends.
        With stream=True it returns a `Stream`. on_token is called with each `Piece`, as in `LLM.generate`.
        With context_shift a conversation that is too long loses its oldest turns, and an answer that fills the context
        the middle of it; system messages stay.
        Raises what `generate` raises, InvalidParameter for messages that the template refuses and tools that it has no
        place for, and ModelFileError for a template that exceeds its limits of time and memory.
        """
        is_stream, choice = truth("stream", stream or False), chosen_tools(tool_choice)
        answer = self._open_stream(
            lambda prompts: prompts.of_chat(messages, params, options, tools, variables, choice),
            lambda: check_options(params, options),
        )
        return answer if is_stream else self._consume(answer, on_token)

    @property
    def completions(self) -> CompletionsT:
        """`completions.create(messages=...)` takes and returns what OpenAI's API does."""
        return self._completions()


SyncChat = Chat[Generation, Stream, "SyncChatCompletions"]


def sync_chat(engine: EngineProcess, prompts: Prompts) -> SyncChat:
    """`LLM.chat`."""

    def completions() -> SyncChatCompletions:
        from vkllm.api.openai.create import ChatCompletions, in_thread  # with pydantic, which takes 0.2 s to import

        return ChatCompletions(in_thread(engine, prompts))

    return Chat(lambda make_answer, _: Stream(engine, make_answer(prompts)), Stream.consume, completions)
