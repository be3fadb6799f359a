"""A model to talk to from asyncio: an `LLM` whose slow parts run in threads.

Loading, tokenizing and rendering take a thread for as long as they run; answers take none. It knows event loops, and
leaves everything else to llm.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack, overload

from vkllm.api.answer import Generation, OnToken, SamplingOptions
from vkllm.api.async_chat import AsyncChat, async_chat
from vkllm.api.async_stream import AsyncStream, Opened, all_answers
from vkllm.api.embedding import async_embeddings
from vkllm.api.llm import LLM
from vkllm.api.loading import Loading, LoadOptions
from vkllm.api.prompts import Message, Prompts, as_batch, check_options
from vkllm.engine.events import EngineStats
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess, not_copied
from vkllm.errors import DeviceLost, InvalidParameter
from vkllm.parameters import checks_names

if TYPE_CHECKING:
    from vkllm.api.openai.create import AsyncCompletions, AsyncEmbeddings


class AsyncLLM:
    """A model for asyncio: `async with AsyncLLM("smollm2") as llm`, then `await llm.generate(...)` and so on.

    Model and options are those of `LLM`; on_progress is called in the event loop. The model is loaded by `load()`,
    `async with` or the first request. It may also be an `LLM` that is loaded: both then use it, and either closes it.
    Nothing here keeps the event loop waiting, and any number of requests may be open: they run in turn. Cancelling a
    task cancels its request. Errors are those of `LLM`, raised by what is awaited.

    >>> import asyncio
    >>> async def main():
    ...     async with AsyncLLM("smollm2", n_ctx=512) as llm:
    ...         questions = ["The capital of France is", "The capital of Italy is"]
    ...         answers = await asyncio.gather(*(llm.generate(q, max_tokens=1, temperature=0) for q in questions))
    ...         print([answer.text for answer in answers])
    ...         stream = llm.stream(questions[0], max_tokens=2, temperature=0)
    ...         print([piece async for piece in stream])
    >>> asyncio.run(main())
    [' Paris', ' Rome']
    [' Paris', '.']
    """

    @checks_names(LoadOptions)
    def __init__(self, model: str | Path | LLM = "smollm2", **options: Unpack[LoadOptions]) -> None:
        if isinstance(model, LLM) and options:
            raise InvalidParameter(f"the model is loaded already; {', '.join(options)} cannot be chosen any more")
        self._options = options
        self._llm: LLM | None = None
        if isinstance(model, LLM):
            self._llm = model
            self._model: str | Path = model.path
        else:
            Loading(model, **options)  # wrong options are found now
            self._model = model
        self._loading: Loading | None = None
        self._load_lock = asyncio.Lock()
        self._is_closed = False

    def __repr__(self) -> str:
        if self._llm is not None:
            return f"<Async{repr(self._llm)[1:]}"
        return f"<AsyncLLM {self._model}, {'closed' if self._is_closed else 'not loaded'}>"

    def __reduce__(self) -> NoReturn:
        raise not_copied("an AsyncLLM")

    async def load(self) -> None:
        """Downloads and loads the model unless it is loaded. Raises what `LLM` raises."""
        await self._loaded()

    @property
    def llm(self) -> LLM:
        """The loaded model with all that it tells: n_ctx, device_name, plan and more. Its methods wait."""
        if self._llm is None:
            raise DeviceLost("the model is not loaded; await load() first")
        return self._llm

    @overload
    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation: ...

    @overload
    async def generate(
        self,
        prompt: list[str] | list[list[int]],
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Generation]: ...

    @checks_names(SamplingOptions)
    async def generate(
        self,
        prompt: str | Sequence[int] | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation | list[Generation]:
        """Continues a prompt, or several; parameters and errors as for `LLM.generate`.

        on_token may be a coroutine function.
        """
        prompts, is_batch = as_batch(prompt, on_token)
        streams = [self.stream(each, params, **options) for each in prompts]
        return await (all_answers(streams) if is_batch else streams[0].consume(on_token))

    @checks_names(SamplingOptions)
    def stream(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> AsyncStream:
        """Like `generate`, but returns the pieces as they come: `async for piece in llm.stream(...)`."""
        return AsyncStream(
            self._opened,
            lambda prompts: prompts.of_text(prompt, params, options),
            lambda: check_options(params, options),
        )

    @property
    def chat(self) -> AsyncChat:
        """`await chat(messages)` answers a conversation, `await chat.completions.create(...)` in OpenAI's shape."""
        return async_chat(self._opened)

    @property
    def completions(self) -> AsyncCompletions:
        """`await completions.create(prompt=...)` takes and returns what OpenAI's API for plain text does."""
        from vkllm.api.openai.create import Completions, in_event_loop  # with pydantic, which takes 0.2 s to import

        return Completions(in_event_loop(self._opened))

    @property
    def embeddings(self) -> AsyncEmbeddings:
        """`await embeddings.create(input=...)` takes and returns what OpenAI's API does."""
        from vkllm.api.openai.create import Embeddings, embed_in_event_loop

        return Embeddings(embed_in_event_loop(self._opened))

    @overload
    async def embed(self, text: str | Sequence[int], *, origin: str = "") -> list[float]: ...

    @overload
    async def embed(self, text: list[str] | list[list[int]], *, origin: str = "") -> list[list[float]]: ...

    @checks_names()
    async def embed(
        self, text: str | Sequence[int] | list[str] | list[list[int]], *, origin: str = ""
    ) -> list[float] | list[list[float]]:
        """The embedding of a text, or of each in a list; as `LLM.embed`."""
        texts, is_batch = as_batch(text)
        engine, prompts = await self._opened()
        requests = await asyncio.to_thread(prompts.of_embeddings, texts, origin)
        vectors = [found.vector for found in await async_embeddings(engine, requests)]
        return vectors if is_batch else vectors[0]

    @checks_names()
    async def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The token ids of a text; as `LLM.tokenize`."""
        llm = await self._loaded()
        return await asyncio.to_thread(llm.tokenize, text, add_special=add_special, parse_special=parse_special)

    @checks_names()
    async def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; as `LLM.detokenize`."""
        llm = await self._loaded()
        return await asyncio.to_thread(llm.detokenize, token_ids, skip_special=skip_special)

    @checks_names()
    async def count_tokens(
        self,
        prompt: str | Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> int:
        """How many tokens a text or a conversation takes; as `LLM.count_tokens`."""
        llm = await self._loaded()
        return await asyncio.to_thread(llm.count_tokens, prompt, tools=tools, variables=variables)

    @checks_names()
    async def save_state(self, path: str | Path, *, origin: str = "") -> None:
        """Writes what is cached to a file; as `LLM.save_state`."""
        llm = await self._loaded()
        await asyncio.to_thread(llm.save_state, path, origin=origin)

    @checks_names()
    async def load_state(self, path: str | Path, *, origin: str = "") -> list[int]:
        """Reads what `save_state` wrote and returns its token ids; as `LLM.load_state`."""
        llm = await self._loaded()
        return await asyncio.to_thread(llm.load_state, path, origin=origin)

    def stats(self) -> EngineStats:
        """Counts and seconds of all requests that ended since the model was loaded; as `LLM.stats`."""
        return EngineStats() if self._llm is None else self._llm.stats()

    async def close(self) -> None:
        """Ends the engine and releases the device; open streams fail. The second call does nothing."""
        self._is_closed = True
        if (loading := self._loading) is not None:
            await asyncio.to_thread(loading.cancel)
        if (llm := self._llm) is not None:
            await asyncio.to_thread(llm.close)

    async def __aenter__(self) -> Self:
        await self.load()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _opened(self) -> tuple[EngineProcess, Prompts]:
        llm = await self._loaded()
        return llm._engine, llm._prompts

    async def _loaded(self) -> LLM:
        async with self._load_lock:
            if self._llm is None:
                self._llm = await self._load()
            return self._llm

    async def _load(self) -> LLM:
        """Loads the model in a thread. A cancel of this task, or `close`, ends that."""
        if self._is_closed:
            raise DeviceLost("the engine was closed; open the model again")
        loop, tell = asyncio.get_running_loop(), self._options.get("on_progress")

        def on_progress(what: str, done_bytes: int, total_bytes: int) -> None:
            if tell is not None:
                loop.call_soon_threadsafe(tell, what, done_bytes, total_bytes)

        options: LoadOptions = {**self._options, "on_progress": on_progress}
        loading = self._loading = Loading(self._model, **options)
        try:
            return LLM(await asyncio.to_thread(loading.run))
        except asyncio.CancelledError:
            await asyncio.to_thread(loading.cancel)
            raise


def opening(llm: AsyncLLM) -> Opened:
    """What loads a model, for callers that send requests of their own."""
    return llm._opened


def is_alive(llm: AsyncLLM) -> bool:
    """Whether the engine of a loaded model lives."""
    return llm.llm._engine.is_alive


async def revive(llm: AsyncLLM) -> None:
    """Starts a new engine where a loaded model's has died. Raises what loading raises."""
    await asyncio.to_thread(llm.llm._engine.start)
