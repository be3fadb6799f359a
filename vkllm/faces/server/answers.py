"""Answers on their way to clients: whole ones, and streams that say they are alive, end with who hangs up, and do not
wait for ever for who reads nothing.

It knows HTTP, not what is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vkllm.faces.server.counts import Histogram
from vkllm.faces.server.errors import Dialect, HttpError, problem_of

ResultT = TypeVar("ResultT")
_NOBODY = 499
"""The status in the log where the client hung up, as nginx has it."""


class HungUp(Exception):
    """The client has closed the connection: nobody takes an answer."""


class Json(Response):
    """A body of JSON."""

    media_type = "application/json; charset=utf-8"

    def render(self, content: Any) -> bytes:
        """Not a number becomes null: JSON has no other word for it."""
        return json_bytes(content)


def json_bytes(content: Any) -> bytes:
    """JSON as it is sent."""
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return list(map(_finite, value)) if isinstance(value, list | tuple) else value


def error_response(error: BaseException, dialect: Dialect) -> Response:
    """The answer that tells a client of an error."""
    problem = problem_of(error)
    return Json(problem.body(dialect), problem.status, dict(problem.headers))


async def answered(request: Request, answer: Coroutine[Any, Any, ResultT]) -> ResultT:
    """What a coroutine returns, unless the client hangs up or the server ends before: then it is cancelled.

    Raises HungUp, HttpError. The request's body must have been read.
    """
    task = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_hung_up(request.receive))
    closing = asyncio.ensure_future(request.app.state.closing.wait())
    try:
        await asyncio.wait({task, leaving, closing}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HungUp if leaving.done() else server_ends()
    finally:
        await _cancelled(task, leaving, closing)


def server_ends() -> HttpError:
    """The error of requests that run when the server is told to end."""
    return HttpError(503, "the server was told to end; try again when it is there again", retry_after_s=2)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Streamed(Response):
    """An answer that is sent piece by piece. What goes wrong before the first piece has a status of its own.

    pieces: what is sent; it is closed when the client hangs up, which cancels what it waits for. dialect: of errors.
    ping: what is sent while there is nothing else, if anything. ping_s: how often, if the request says so; infinite is
    never. on_error: an error in the middle, as a piece. has_head: whether the first piece comes before any token.
    """

    def __init__(
        self,
        request: Request,
        pieces: AsyncGenerator[bytes],
        *,
        dialect: Dialect,
        on_error: Callable[[Mapping[str, Any]], bytes],
        ping: bytes | None = None,
        ping_s: float | None = None,
        has_head: bool = False,
        media_type: str = "text/event-stream",
    ) -> None:
        super().__init__(
            media_type=media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, status_code=200
        )
        del self.headers["content-length"]
        self._pieces = pieces
        self._dialect = dialect
        self._on_error = on_error
        self._ping = ping
        self._has_head = has_head
        self._settings = request.app.state.settings
        self._ping_s = self._settings.ping_s if ping_s is None else None if ping_s == math.inf else ping_s
        self._closing: asyncio.Event = request.app.state.closing
        self._first_s: Histogram = request.app.state.counts.first_token_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the pieces."""
        self._scope = scope
        self._has_begun, n_pieces = False, 0
        leaving = asyncio.ensure_future(_hung_up(receive))
        closing = asyncio.ensure_future(self._closing.wait())
        step = asyncio.ensure_future(anext(self._pieces, None))
        try:
            while True:
                await asyncio.wait({step, leaving, closing}, timeout=self._ping_s, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    raise HungUp
                if closing.done():
                    raise server_ends()
                if step.done():
                    if (piece := step.result()) is None:
                        break
                    step = asyncio.ensure_future(anext(self._pieces, None))
                    if n_pieces == self._has_head and scope["method"] == "POST":
                        self._first_s.add(time.perf_counter() - scope["vkllm.started"])
                    n_pieces += 1
                    await self._send(send, piece)
                elif self._ping is not None:
                    await self._send(send, self._ping)
            await self._send(send, b"", is_last=True)
        except (HungUp, OSError):
            scope["vkllm.status"] = _NOBODY
        except Exception as error:
            if not self._has_begun:
                await error_response(error, self._dialect)(scope, receive, send)
            else:
                body = problem_of(error).body(self._dialect)
                scope["vkllm.error"] = str(error)
                with contextlib.suppress(OSError, HungUp):
                    await self._send(send, self._on_error(body), is_last=True)
        finally:
            await _cancelled(step, leaving, closing)
            await self._pieces.aclose()

    async def _send(self, send: Send, piece: bytes, *, is_last: bool = False) -> None:
        """Sends a piece. Raises HungUp for a client that reads nothing."""
        try:
            async with asyncio.timeout(self._settings.write_s):
                if not self._has_begun:
                    self._has_begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": piece, "more_body": not is_last})
        except TimeoutError:
            if (abort := self._scope.get("vkllm.abort")) is not None:
                abort()
            raise HungUp from None


def event(data: Any, name: str | None = None) -> bytes:
    """A server-sent event. data: JSON, or text that is sent as it is."""
    text = data.encode() if isinstance(data, str) else json_bytes(data)
    return (b"" if name is None else b"event: " + name.encode() + b"\n") + b"data: " + text + b"\n\n"


def events(told: Iterable[Mapping[str, Any]]) -> bytes:
    """Server-sent events that are named by their types, as OpenAI's responses and Anthropic's messages have them."""
    return b"".join(event(each, each["type"]) for each in told)


def line(data: Any) -> bytes:
    """A line of JSON, as ollama's streams have them."""
    return json_bytes(data) + b"\n"
