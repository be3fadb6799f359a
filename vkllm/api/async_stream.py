"""Answers as their pieces come, for asyncio: the engine's events are brought to the event loop, which never waits.

It knows event loops and threads; how pieces are put together is `api/answer.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import NoReturn, Self

from vkllm.api.answer import AnswerText, Generation, OnToken, Piece
from vkllm.api.prompts import Prompts
from vkllm.engine.events import Event, Token
from vkllm.engine.process.handle import EngineProcess, not_copied
from vkllm.engine.requests import Request

Opened = Callable[[], Awaitable[tuple[EngineProcess, Prompts]]]
"""Loads the model unless it is loaded; returns what takes its requests and what makes them."""


class _Bridge:
    """Brings events from threads to an event loop: all that wait in one call, because a thread that wakes a busy loop
    loses Python's lock and waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._waiting: deque[tuple[Callable[[Event], None], Event]] = deque()
        self._is_called = False

    def send(self, put: Callable[[Event], None], event: Event) -> None:
        """Has the loop call put with the event, soon and in order."""
        self._waiting.append((put, event))
        if not self._is_called and (loop := self._loop()) is not None:
            self._is_called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_called = False
        while self._waiting:
            put, event = self._waiting.popleft()
            put(event)


_bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Bridge] = weakref.WeakKeyDictionary()


class AsyncStream(AsyncIterator[Piece]):
    """The pieces of one answer, as they come: `async for piece in llm.stream(...)`; `await result()` is the whole.

    The request is sent when the stream is first read, awaited or entered (`async with`). Closing a stream before its
    end, leaving its `async with` block, dropping the last reference to it, or cancelling the task that waits for it
    cancels the request. Made by `AsyncLLM.stream`; to be read by one task at a time.

    >>> import asyncio
    >>> async def main():
    ...     async with async_llm.stream("The capital of France is", max_tokens=2, temperature=0) as stream:
    ...         async for piece in stream:
    ...             print(piece, end="")
    ...     return await stream.result()
    >>> answer = asyncio.run(main())
     Paris.
    """

    def __init__(
        self,
        opened: Opened,
        make_answer: Callable[[Prompts], AnswerText],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """make_answer and check are called in a thread, because they tokenize, render templates and read grammars.

        check: raises what is wrong whatever the model, before that is loaded.
        """
        self._check = check
        self._opened = opened
        self._make_answer = make_answer
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._start: asyncio.Task[AnswerText] | None = None
        self._cancel: Callable[[], None] | None = None  # once the request was sent
        self._is_closed = False
        self._tells_progress = False
        self._joins = False
        self._taken: Event | None = None  # from the queue, but not yet by the answer
        self._held: Piece | None = None  # what the last piece could not be joined with

    def __repr__(self) -> str:
        if self._is_closed:
            return "<AsyncStream, closed>"
        if self._start is None or not self._start.done() or self._start.cancelled() or self._start.exception():
            return "<AsyncStream, not started>" if self._start is None else "<AsyncStream, not answered>"
        return f"<AsyncStream, {self._start.result().state}>"

    def __reduce__(self) -> NoReturn:
        raise not_copied("an AsyncStream")

    async def __anext__(self) -> Piece:
        """The next piece. Raises InvalidParameter, ContextOverflow, DeviceLost and other errors of the engine."""
        answer = await self._started()
        piece, self._held = self._held, None
        while piece is None:
            if answer.is_over:
                raise StopAsyncIteration
            piece = await self._advance(answer)
        return self._joined(answer, piece)

    def _joined(self, answer: AnswerText, piece: Piece) -> Piece:
        """A piece with those of tokens that have come meanwhile, where pieces are joined, as far as they only add
        text."""
        while self._joins and piece.is_text and not self._events.empty():
            self._taken = self._events.get_nowait()
            if not isinstance(self._taken, Token):
                break
            if (following := self._pushed(answer)) is None:
                continue
            if not following.is_text:
                self._held = following
                break
            piece = piece.followed_by(following)
        return piece

    async def result(self) -> Generation:
        """The whole answer, once it has ended. After `close()` it is what had come until then."""
        answer = await self._started()
        while answer.generation is None:
            if answer.error is not None:
                raise answer.error
            await self._advance(answer)
        return answer.generation

    async def _request(self) -> Request:
        """What was sent to the engine, as soon as it was sent."""
        return (await self._started()).request

    async def consume(self, on_token: OnToken | None = None) -> Generation:
        """The whole answer; on_token, which may be a coroutine function, is called with each piece of it."""
        async with self:
            if on_token is not None:
                async for piece in self:
                    if inspect.isawaitable(called := on_token(piece)):
                        await called
            return await self.result()

    async def close(self) -> None:
        """Cancels the request unless it has ended. No pieces come after this."""
        self._close()

    async def __aenter__(self) -> Self:
        await self._started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        self._is_closed = True
        self._held = None
        if self._cancel is not None:
            self._cancel()

    async def _started(self) -> AnswerText:
        """The answer whose request was sent."""
        if self._start is None:
            self._start = asyncio.create_task(self._send())
            # The task that waits for it may be cancelled, and then nobody takes its error.
            self._start.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            # The request is sent in a thread, which cannot be stopped: it must always be known what was sent.
            return await asyncio.shield(self._start)
        except asyncio.CancelledError:
            self._close()
            raise

    async def _send(self) -> AnswerText:
        await asyncio.to_thread(self._check)
        engine, prompts = await self._opened()
        loop = asyncio.get_running_loop()
        bridge = _bridges.setdefault(loop, _Bridge(loop))
        on_event = partial(bridge.send, self._events.put_nowait)

        def send() -> AnswerText:
            answer = self._make_answer(prompts)
            if self._tells_progress:
                answer.tell_progress()
            engine.send(answer.request, on_event)

            def cancel() -> None:
                if not answer.is_over:
                    answer.is_over = True
                    engine.cancel(answer.request.id)

            self._cancel = cancel
            if self._is_closed:  # meanwhile, when there was nothing to cancel
                cancel()
            return answer

        return await asyncio.to_thread(send)

    async def _advance(self, answer: AnswerText) -> Piece | None:
        """Waits for one event and returns the piece that it completes, if any."""
        try:
            self._taken = self._taken or await self._events.get()
        except asyncio.CancelledError:
            self._close()
            raise
        return self._pushed(answer)

    def _pushed(self, answer: AnswerText) -> Piece | None:
        """What the event that was taken completes, if anything."""
        assert self._taken is not None
        event, self._taken = self._taken, None
        piece = answer.push(event)
        if answer.is_stopped:
            self._close()
        return piece


async def all_answers(streams: Sequence[AsyncStream]) -> list[Generation]:
    """Sends all requests at once and waits for all answers; an error or a cancelled task cancels all requests."""
    async with contextlib.AsyncExitStack() as stack:
        for stream in streams:
            await stack.enter_async_context(stream)
        return [await stream.result() for stream in streams]


def telling_progress(streams: Sequence[AsyncStream]) -> None:
    """Asks for pieces that say how far the prompt is, before anything is sent."""
    for stream in streams:
        stream._tells_progress = True


def joining(streams: Sequence[AsyncStream], *, joins: bool = True) -> None:
    """Whether pieces that come faster than they are read are joined, so that a reader that has much to do with each can
    keep up."""
    for stream in streams:
        stream._joins = joins


async def request_of(stream: AsyncStream) -> Request:
    """What a stream has sent. Raises what making it raises."""
    return await stream._request()
