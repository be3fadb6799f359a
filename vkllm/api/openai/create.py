"""`create(...)` as in the openai package: `llm.chat.completions`, `llm.completions`, `llm.embeddings`.

It knows how a thread or an event loop waits for answers; calls.py knows parameters and the shape of answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

from pydantic import BaseModel

from vkllm.api import async_stream
from vkllm.api.answer import AnswerText, Generation
from vkllm.api.async_stream import AsyncStream, Opened
from vkllm.api.embedding import async_embeddings, embeddings
from vkllm.api.openai.calls import Call, ChatCall, TextCall
from vkllm.api.openai.completions import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    EmbeddingResponse,
    embedding_response,
)
from vkllm.api.openai.options import ChatCompletionOptions, EmbeddingOptions, TextOptions, given_options, is_left_out
from vkllm.api.prompts import Message, Prompts, as_batch
from vkllm.api.stream import Stream, all_answers
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import Request
from vkllm.errors import InvalidParameter
from vkllm.parameters import checks_names, truth

ChunkT = TypeVar("ChunkT")
WholeT = TypeVar("WholeT")
StreamT = TypeVar("StreamT")
ResultT = TypeVar("ResultT")
Awaited = Coroutine[Any, Any, ResultT]
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


Answering = Callable[[Callable[[Prompts], Call[Any, Any]], bool], Any]
"""Makes a call, sends its requests, and returns what `create` does; for an event loop, what is awaited for that. The
second argument says whether it is a stream."""


class ChatCompletions(Generic[WholeT, StreamT]):
    """`llm.chat.completions`."""

    def __init__(self, answer: Answering) -> None:
        self._answer = answer

    @overload
    def create(
        self,
        *,
        messages: Iterable[Message | BaseModel],
        model: str | None = None,
        stream: Literal[False] | None = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> WholeT: ...

    @overload
    def create(
        self,
        *,
        messages: Iterable[Message | BaseModel],
        model: str | None = None,
        stream: Literal[True],
        **options: Unpack[ChatCompletionOptions],
    ) -> StreamT: ...

    @checks_names(ChatCompletionOptions)
    def create(
        self,
        *,
        messages: Iterable[Message | BaseModel],
        model: str | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> WholeT | StreamT:
        """Answers a conversation, in OpenAI's shape.

        model is there for programs that name one; the one that answers is the one that was loaded. n answers have the
        seeds seed, seed + 1 and so on. response_format asks for JSON, perhaps of a schema. With stream=True it yields
        chunks, and with stream_options={"include_usage": True} counts in the last of them. The calls of an `AsyncLLM`
        are awaited, and streams then read with `async for`. Raises InvalidParameter, also for parameters that it does
        not know, ContextOverflow, DeviceLost.
        """
        is_stream = _is_stream(stream)
        return self._answer(  # type: ignore[no-any-return]
            lambda prompts: ChatCall(prompts, messages, options, is_stream=is_stream), is_stream
        )


class Completions(Generic[WholeT, StreamT]):
    """`llm.completions`."""

    def __init__(self, answer: Answering) -> None:
        self._answer = answer

    @overload
    def create(
        self,
        *,
        prompt: TextPrompt,
        model: str | None = None,
        stream: Literal[False] | None = None,
        **options: Unpack[TextOptions],
    ) -> WholeT: ...

    @overload
    def create(
        self,
        *,
        prompt: TextPrompt,
        model: str | None = None,
        stream: Literal[True],
        **options: Unpack[TextOptions],
    ) -> StreamT: ...

    @checks_names(TextOptions)
    def create(
        self,
        *,
        prompt: TextPrompt,
        model: str | None = None,
        stream: bool | None = None,
        **options: Unpack[TextOptions],
    ) -> WholeT | StreamT:
        """Continues a prompt, or each of a list of them, in OpenAI's shape; the rest is as for a chat.

        With echo=True the prompt comes before each continuation.
        """
        is_stream = _is_stream(stream)
        return self._answer(  # type: ignore[no-any-return]
            lambda prompts: TextCall(prompts, prompt, options, is_stream=is_stream), is_stream
        )


class Embeddings(Generic[WholeT]):
    """`llm.embeddings`."""

    def __init__(self, answer: Callable[[Callable[[Prompts], list[Request]], bool], WholeT]) -> None:
        """answer: sends the requests that it has made; the second argument says whether vectors become base64."""
        self._answer = answer

    @checks_names(EmbeddingOptions)
    def create(self, *, input: TextPrompt, model: str | None = None, **options: Unpack[EmbeddingOptions]) -> WholeT:
        """The embeddings of a text or of each in a list, in OpenAI's shape; what they are `LLM.embed` says.

        encoding_format: "float", which is the default, or "base64". dimensions: only as many as the model has. Raises
        what `LLM.embed` raises.
        """
        given = given_options(options, EmbeddingOptions)
        if (encoding := given.get("encoding_format", "float")) not in ("float", "base64"):
            raise InvalidParameter(f'encoding_format must be "float" or "base64", not {encoding!r}')

        def requests(prompts: Prompts) -> list[Request]:
            if (n := given.get("dimensions", prompts.d_embedding)) != prompts.d_embedding:
                raise InvalidParameter(
                    f"dimensions must be {prompts.d_embedding}, which the model's embeddings have, not {n!r}"
                )
            return prompts.of_embeddings(as_batch(input)[0], given.get("origin", ""))

        return self._answer(requests, encoding == "base64")


SyncChatCompletions = ChatCompletions[ChatCompletion, CompletionStream[ChatCompletionChunk]]
SyncCompletions = Completions[Completion, CompletionStream[Completion]]
SyncEmbeddings = Embeddings[EmbeddingResponse]
AsyncChatCompletions = ChatCompletions[Awaited[ChatCompletion], Awaited[AsyncCompletionStream[ChatCompletionChunk]]]
AsyncCompletions = Completions[Awaited[Completion], Awaited[AsyncCompletionStream[Completion]]]
AsyncEmbeddings = Embeddings[Awaited[EmbeddingResponse]]


def in_thread(engine: EngineProcess, prompts: Prompts) -> Answering:
    """For an `LLM`: the thread that calls waits."""

    def answer(make_call: Callable[[Prompts], Call[Any, Any]], is_stream: bool) -> Any:
        call = make_call(prompts)
        return CompletionStream(engine, call) if is_stream else call.whole(all_answers(engine, call.answers))

    return answer


def in_event_loop(opened: Opened) -> Answering:
    """For an `AsyncLLM`: what takes long besides answers, as tokenizing does, runs in a thread."""

    async def answer(make_call: Callable[[Prompts], Call[Any, Any]], is_stream: bool) -> Any:
        _, prompts = await opened()
        call = await asyncio.to_thread(make_call, prompts)
        streams = [AsyncStream(opened, partial(_given_answer, answer)) for answer in call.answers]
        return (
            AsyncCompletionStream(call, streams) if is_stream else call.whole(await async_stream.all_answers(streams))
        )

    return answer


def embed_in_thread(
    engine: EngineProcess, prompts: Prompts
) -> Callable[[Callable[[Prompts], list[Request]], bool], EmbeddingResponse]:
    """As `in_thread`, for embeddings."""

    def answer(make_requests: Callable[[Prompts], list[Request]], in_base64: bool) -> EmbeddingResponse:
        return embedding_response(embeddings(engine, make_requests(prompts)), prompts.model, in_base64=in_base64)

    return answer


def embed_in_event_loop(
    opened: Opened,
) -> Callable[[Callable[[Prompts], list[Request]], bool], Awaited[EmbeddingResponse]]:
    """As `in_event_loop`, for embeddings."""

    async def answer(make_requests: Callable[[Prompts], list[Request]], in_base64: bool) -> EmbeddingResponse:
        engine, prompts = await opened()
        requests = await asyncio.to_thread(make_requests, prompts)
        return embedding_response(await async_embeddings(engine, requests), prompts.model, in_base64=in_base64)

    return answer


def _given_answer(answer: AnswerText, prompts: Prompts) -> AnswerText:
    return answer


def _is_stream(stream: bool | None) -> bool:
    return not is_left_out(stream) and truth("stream", stream)


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
