"""`create(...)` as in the openai package: `llm.chat.completions`, `llm.completions`, `llm.embeddings`.

It knows how answers are waited for, by a thread or by an event loop; calls.py knows what is asked and told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

from pydantic import BaseModel

from vkllm.api import async_stream
from vkllm.api.answer import AnswerText, Generation
from vkllm.api.async_stream import AsyncStream, Opened
from vkllm.api.embedding import async_embeddings, embeddings
from vkllm.api.openai.calls import Call, ChatCall, ChatOptions, TextCall, TextOptions
from vkllm.api.openai.completions import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    EmbeddingResponse,
    embedding_response,
)
from vkllm.api.prompts import Message, Prompts, as_batch
from vkllm.api.stream import Stream, results
from vkllm.engine.process.handle import EngineProcess
from vkllm.errors import InvalidParameter

ChunkT = TypeVar("ChunkT")
TextPrompt = str | Sequence[int] | list[str] | list[list[int]]


class CompletionStream(Iterator[ChunkT], Generic[ChunkT]):
    """The chunks of an answer in OpenAI's shape, as they come; of several answers, one after the other.

    Closing it before its end, leaving its `with` block or dropping the last reference to it cancels the requests.
    """

    def __init__(self, engine: EngineProcess, call: Call[Any, ChunkT]) -> None:
        """Sends the call's requests to the engine."""
        self._streams = [Stream(engine, answer) for answer in call.answers]
        self._chunks = _chunks(call, self._streams)

    def __next__(self) -> ChunkT:
        """The next chunk. Raises DeviceLost and other errors of the engine."""
        try:
            return next(self._chunks)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancels the requests unless they are done. There are no chunks after this."""
        self._chunks.close()
        for stream in self._streams:
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncCompletionStream(AsyncIterator[ChunkT], Generic[ChunkT]):
    """As `CompletionStream`, for `async for` and `async with`."""

    def __init__(self, call: Call[Any, ChunkT], streams: Sequence[AsyncStream]) -> None:
        self._streams = streams
        self._chunks = _async_chunks(call, streams)

    async def __anext__(self) -> ChunkT:
        """The next chunk. Raises DeviceLost and other errors of the engine."""
        try:
            return await anext(self._chunks)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Cancels the requests unless they are done. There are no chunks after this."""
        for stream in self._streams:
            await stream.close()
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class ChatCompletions:
    """`llm.chat.completions`."""

    def __init__(self, engine: EngineProcess, prompts: Prompts) -> None:
        self._engine = engine
        self._prompts = prompts

    @overload
    def create(
        self,
        *,
        messages: Sequence[Message | BaseModel],
        model: str | None = None,
        stream: Literal[False] | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...

    @overload
    def create(
        self,
        *,
        messages: Sequence[Message | BaseModel],
        model: str | None = None,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> CompletionStream[ChatCompletionChunk]: ...

    def create(
        self,
        *,
        messages: Sequence[Message | BaseModel],
        model: str | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion | CompletionStream[ChatCompletionChunk]:
        """Answers a conversation, in OpenAI's shape.

        model is there for programs that name one; the one that answers is the one that was loaded. n answers have the
        seeds seed, seed + 1 and so on. response_format asks for JSON, perhaps of a schema. With stream=True it yields
        chunks, and with stream_options={"include_usage": True} counts in the last of them. Raises InvalidParameter,
        also for parameters that it does not know, ContextOverflow, DeviceLost.
        """
        call = ChatCall(self._prompts, messages, options)
        if stream:
            return CompletionStream(self._engine, call)
        return call.whole(results(self._engine, call.answers))


class Completions:
    """`llm.completions`."""

    def __init__(self, engine: EngineProcess, prompts: Prompts) -> None:
        self._engine = engine
        self._prompts = prompts

    @overload
    def create(
        self,
        *,
        prompt: TextPrompt,
        model: str | None = None,
        stream: Literal[False] | None = None,
        **options: Unpack[TextOptions],
    ) -> Completion: ...

    @overload
    def create(
        self,
        *,
        prompt: TextPrompt,
        model: str | None = None,
        stream: Literal[True],
        **options: Unpack[TextOptions],
    ) -> CompletionStream[Completion]: ...

    def create(
        self,
        *,
        prompt: TextPrompt,
        model: str | None = None,
        stream: bool | None = None,
        **options: Unpack[TextOptions],
    ) -> Completion | CompletionStream[Completion]:
        """Continues a prompt, or each of a list of them, in OpenAI's shape; the rest is as for a chat."""
        call = TextCall(self._prompts, prompt, options)
        if stream:
            return CompletionStream(self._engine, call)
        return call.whole(results(self._engine, call.answers))


class AsyncChatCompletions:
    """`llm.chat.completions` of an `AsyncLLM`."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    @overload
    async def create(
        self,
        *,
        messages: Sequence[Message | BaseModel],
        model: str | None = None,
        stream: Literal[False] | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self,
        *,
        messages: Sequence[Message | BaseModel],
        model: str | None = None,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> AsyncCompletionStream[ChatCompletionChunk]: ...

    async def create(
        self,
        *,
        messages: Sequence[Message | BaseModel],
        model: str | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion | AsyncCompletionStream[ChatCompletionChunk]:
        """As `ChatCompletions.create`; with stream=True what is awaited is read with `async for`."""
        _, prompts = await self._opened()
        call = await asyncio.to_thread(ChatCall, prompts, messages, options)
        streams = _async_streams(self._opened, call.answers)
        return AsyncCompletionStream(call, streams) if stream else call.whole(await async_stream.results(streams))


class AsyncCompletions:
    """`llm.completions` of an `AsyncLLM`."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    @overload
    async def create(
        self,
        *,
        prompt: TextPrompt,
        model: str | None = None,
        stream: Literal[False] | None = None,
        **options: Unpack[TextOptions],
    ) -> Completion: ...

    @overload
    async def create(
        self,
        *,
        prompt: TextPrompt,
        model: str | None = None,
        stream: Literal[True],
        **options: Unpack[TextOptions],
    ) -> AsyncCompletionStream[Completion]: ...

    async def create(
        self,
        *,
        prompt: TextPrompt,
        model: str | None = None,
        stream: bool | None = None,
        **options: Unpack[TextOptions],
    ) -> Completion | AsyncCompletionStream[Completion]:
        """As `Completions.create`; with stream=True what is awaited is read with `async for`."""
        _, prompts = await self._opened()
        call = await asyncio.to_thread(TextCall, prompts, prompt, options)
        streams = _async_streams(self._opened, call.answers)
        return AsyncCompletionStream(call, streams) if stream else call.whole(await async_stream.results(streams))


class Embeddings:
    """`llm.embeddings`."""

    def __init__(self, engine: EngineProcess, prompts: Prompts) -> None:
        self._engine = engine
        self._prompts = prompts

    def create(
        self, *, input: TextPrompt, model: str | None = None, encoding_format: str | None = None
    ) -> EmbeddingResponse:
        """The embeddings of a text or of each in a list, in OpenAI's shape; what they are `LLM.embed` says.

        encoding_format: "float", which is the default, or "base64". Raises what `LLM.embed` raises.
        """
        in_base64 = _is_base64(encoding_format)
        requests = self._prompts.of_embeddings(as_batch(input)[0])
        return embedding_response(embeddings(self._engine, requests), self._prompts.model, in_base64=in_base64)


class AsyncEmbeddings:
    """`llm.embeddings` of an `AsyncLLM`."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def create(
        self, *, input: TextPrompt, model: str | None = None, encoding_format: str | None = None
    ) -> EmbeddingResponse:
        """As `Embeddings.create`."""
        in_base64 = _is_base64(encoding_format)
        engine, prompts = await self._opened()
        requests = await asyncio.to_thread(prompts.of_embeddings, as_batch(input)[0])
        return embedding_response(await async_embeddings(engine, requests), prompts.model, in_base64=in_base64)


def _is_base64(encoding_format: str | None) -> bool:
    if encoding_format not in (None, "float", "base64"):
        raise InvalidParameter(f'encoding_format must be "float" or "base64", not {encoding_format!r}')
    return encoding_format == "base64"


def _async_streams(opened: Opened, answers: Sequence[AnswerText]) -> list[AsyncStream]:
    def stream(answer: AnswerText) -> AsyncStream:
        return AsyncStream(opened, lambda _: answer)

    return [stream(answer) for answer in answers]


def _chunks(call: Call[Any, ChunkT], streams: Sequence[Stream]) -> Generator[ChunkT]:
    generations: list[Generation] = []
    for index, stream in enumerate(streams):
        if (first := call.first_chunk(index)) is not None:
            yield first
        for piece in stream:
            yield call.chunk(index, piece)
        generations.append(stream.result())
        yield call.last_chunk(index, generations[-1])
    if call.includes_usage:
        yield call.usage_chunk(generations)


async def _async_chunks(call: Call[Any, ChunkT], streams: Sequence[AsyncStream]) -> AsyncGenerator[ChunkT]:
    generations: list[Generation] = []
    for index, stream in enumerate(streams):
        if (first := call.first_chunk(index)) is not None:
            yield first
        async for piece in stream:
            yield call.chunk(index, piece)
        generations.append(await stream.result())
        yield call.last_chunk(index, generations[-1])
    if call.includes_usage:
        yield call.usage_chunk(generations)
