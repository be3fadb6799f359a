"""vkllm's models in Simon Willison's `llm`: `pip install "vkllm[llm]"`, then `llm -m vkllm/smollm2 "Hello"`.

It knows llm's classes and vkllm's public names. A model is loaded by its first prompt and stays loaded while the
program runs; it is one and the same for llm's synchronous and asynchronous models.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import cache
from threading import Lock
from typing import Any

import llm
from llm.parts import TextPart
from pydantic import Field

from vkllm import LLM, AsyncLLM, Generation, VkllmError
from vkllm.store import installed

DEFAULT = "smollm2"  # listed even where it was not fetched yet


class Options(llm.Model.Options):
    """What `llm -o NAME VALUE` takes: fields of `vkllm.SamplingParams`."""

    temperature: float | None = Field(default=None, description="0 takes the likeliest token each time")
    max_tokens: int | None = Field(default=None, description="most tokens of the answer")
    top_k: int | None = Field(default=None, description="draw from this many of the likeliest tokens; 0 is all")
    top_p: float | None = Field(default=None, description="draw from the likeliest tokens of this total probability")
    min_p: float | None = Field(default=None, description="leave out tokens below this share of the likeliest")
    repetition_penalty: float | None = Field(default=None, description="above 1 makes earlier tokens less likely")
    seed: int | None = Field(default=None, description="the same seed gives the same answer; -1 is a random one")


class Loaded:
    """One model for both kinds of llm's models, loaded when it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._llm: LLM | None = None

    def model(self) -> LLM:
        """Raises what `vkllm.LLM` raises."""
        with self._lock:
            if self._llm is None:
                self._llm = LLM(self._name)
            return self._llm


@cache
def loaded(name: str) -> Loaded:
    """The model of a name, of which there is one: llm registers its models again each time it looks one up."""
    return Loaded(name)


class VkllmModel(llm.Model):
    """A model of vkllm."""

    can_stream = True
    supports_schema = True
    Options = Options

    def __init__(self, name: str) -> None:
        self.model_id = f"vkllm/{name}"
        self._loaded = loaded(name)

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        """The answer's text, piece by piece. Raises llm.ModelError with what vkllm's error says."""
        try:
            with self._loaded.model().chat(_messages(prompt), stream=True, **_options(prompt)) as answer:
                yield from answer
                _tell(response, answer.result())
        except VkllmError as error:
            raise llm.ModelError(str(error)) from error


class AsyncVkllmModel(llm.AsyncModel):
    """The same for asyncio."""

    can_stream = True
    supports_schema = True
    Options = Options

    def __init__(self, name: str) -> None:
        self.model_id = f"vkllm/{name}"
        self._loaded = loaded(name)

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[str, None]:
        """As `VkllmModel.execute`."""
        try:
            model = AsyncLLM(await asyncio.to_thread(self._loaded.model))
            async with model.chat(_messages(prompt), stream=True, **_options(prompt)) as answer:
                async for piece in answer:
                    yield piece
                _tell(response, await answer.result())
        except VkllmError as error:
            raise llm.ModelError(str(error)) from error


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Names the models that are on this machine."""
    for name in dict.fromkeys([DEFAULT, *(model.name for model in installed())]):
        register(VkllmModel(name), AsyncVkllmModel(name))


def _messages(prompt: llm.Prompt) -> list[dict[str, str]]:
    return [
        {"role": message.role, "content": "".join(part.text for part in message.parts if isinstance(part, TextPart))}
        for message in prompt.messages
    ]


def _options(prompt: llm.Prompt) -> Any:
    options = prompt.options.model_dump(exclude_none=True)
    return {**options, "json_schema": prompt.schema} if prompt.schema else options


def _tell(response: llm.Response | llm.AsyncResponse, answer: Generation) -> None:
    stats = answer.stats
    details = {"cached_tokens": stats.n_cached} if stats.n_cached else None
    response.set_usage(input=stats.n_prompt, output=stats.n_generated, details=details)
