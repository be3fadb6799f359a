"""`AsyncLLM.chat`, apart from `LLM.chat` because asyncio takes a while to import."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from vkllm.api.answer import Generation
from vkllm.api.async_stream import AsyncStream, Opened
from vkllm.api.chat import Chat

if TYPE_CHECKING:
    from vkllm.api.openai.create import AsyncChatCompletions

AsyncChat = Chat[Coroutine[Any, Any, Generation], AsyncStream, "AsyncChatCompletions"]


def async_chat(opened: Opened) -> AsyncChat:
    """`AsyncLLM.chat`."""

    def completions() -> AsyncChatCompletions:
        from vkllm.api.openai.create import ChatCompletions, in_event_loop

        return ChatCompletions(in_event_loop(opened))

    return Chat(partial(AsyncStream, opened), AsyncStream.consume, completions)
