"""What a client of any dialect asks of a chat, translated: the arguments of `AsyncLLM.chat`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vkllm.api.answer import SamplingOptions
from vkllm.api.async_llm import AsyncLLM
from vkllm.api.async_stream import AsyncStream
from vkllm.errors import InvalidParameter

SAMPLING_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""What ollama and llama.cpp call sampling parameters, and our names. Others mean nothing here and are ignored."""


@dataclass(frozen=True)
class ChatRequest:
    """A conversation with its options. tool_choice: as `LLM.chat` takes it. variables: for the chat template."""

    messages: list[dict[str, Any]]
    options: SamplingOptions = field(default_factory=SamplingOptions)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    variables: dict[str, Any] = field(default_factory=dict)

    def stream(self, llm: AsyncLLM, *, origin: str = "") -> AsyncStream:
        """Its answer by a model. origin: whose text it is. Errors as of `LLM.chat`, raised by what is awaited."""
        options: SamplingOptions = {**self.options, "origin": origin}
        return llm.chat(
            self.messages,
            tools=self.tools,
            tool_choice=self.tool_choice,
            variables=self.variables,
            stream=True,
            **options,
        )

    async def n_tokens(self, llm: AsyncLLM) -> int:
        """How many tokens its prompt has."""
        return await llm.count_tokens(self.messages, tools=self.tools, variables=self.variables)


def body_of(value: Any) -> Mapping[str, Any]:
    """The body of a request. Raises InvalidParameter unless it is an object of JSON."""
    if not isinstance(value, Mapping):
        raise InvalidParameter(f"the body must be a JSON object, not of type {type(value).__name__}")
    return value


def text_field(body: Mapping[str, Any], name: str, default: str = "") -> str:
    """A field that holds text; null is the default. Raises InvalidParameter."""
    value = body.get(name)
    if not isinstance(value, str | None):
        raise InvalidParameter(f"{name} must be text, not of type {type(value).__name__}")
    return default if value is None else value
