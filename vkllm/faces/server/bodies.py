"""Bodies of requests: read within bounds of size and time, and taken for JSON only where they are sound.

It knows HTTP and JSON, not what a body asks for.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.requests import Request

from vkllm.errors import InvalidParameter
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.habits import as_meant
from vkllm.faces.server.settings import ServerSettings
from vkllm.parameters import whole_number

MAX_DEPTH = 100
"""How deep objects and arrays may lie in each other."""
_IN_THREAD_BYTES = 64 * 1024
_MAX_DIGITS = 40
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = {list: "list", str: "string", bool: "truth value", type(None): "null"}


class Bodies:
    """Counts the bytes of the bodies of all open requests, so that many large ones cannot take all memory."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.held_bytes = 0


class Held:
    """What one open request holds of them."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._n_bytes = 0

    def grow_to(self, n_bytes: int) -> None:
        """Counts a body that is this long at least. Raises HttpError where that is too much."""
        settings = self._bodies.settings
        if n_bytes > settings.max_body_bytes:
            raise HttpError(
                413,
                f"the request's body is larger than {settings.max_body_bytes} bytes, which is this server's limit; "
                "send less",
            )
        more = max(n_bytes - self._n_bytes, 0)
        if self._bodies.held_bytes + more > settings.max_bodies_bytes:
            raise HttpError(
                503, "the server holds as much as it may of other requests; try again soon", retry_after_s=1
            )
        self._bodies.held_bytes += more
        self._n_bytes += more

    def release(self) -> None:
        """The request has ended."""
        self._bodies.held_bytes -= self._n_bytes
        self._n_bytes = 0


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings. Raises HttpError, starlette's ClientDisconnect."""
    held: Held = request.scope["vkllm.held"]
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
        raise HttpError(415, f"the request's body is compressed ({coding[:40]}); send it as it is")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and len(length) < 20:
        held.grow_to(int(length))
    chunks, n_read = [], 0
    read_s = request.app.state.settings.read_s
    try:
        async with asyncio.timeout(read_s):
            async for chunk in request.stream():
                n_read += len(chunk)
                held.grow_to(n_read)
                chunks.append(chunk)
    except TimeoutError:
        raise HttpError(408, f"the request's body did not come within {read_s:.0f} s", is_final=True) from None
    body = b"".join(chunks)
    found = await asyncio.to_thread(json_object, body) if len(body) > _IN_THREAD_BYTES else json_object(body)
    return as_meant(found)


def json_object(body: bytes) -> dict[str, Any]:
    """The object that a body is. Raises HttpError for what is no sound JSON."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HttpError(400, f"the request's body is no UTF-8 (byte {error.start}); send JSON in UTF-8") from None
    if not text.strip():
        raise HttpError(400, "the request's body is empty; send a JSON object")
    if _depth(body) > MAX_DEPTH:
        raise HttpError(400, f"the request's JSON lies more than {MAX_DEPTH} levels deep; send flatter JSON")
    try:
        value = json.loads(text, parse_constant=_no_number, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the request's body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise HttpError(400, f"the request's body must be a JSON object, not a {_NAMES.get(type(value), 'number')}")
    if "\\u" in text and (found := _LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False))):
        raise HttpError(400, f"the request has half a character (\\u{ord(found[0]):04x}); send whole ones")
    return value


def _depth(body: bytes) -> int:
    """How deep the deepest value lies, or the first that lies too deep; brackets in strings do not count."""
    deepest = depth = 0
    for token in _STRUCTURE.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
        elif first in b"]}":
            depth -= 1
    return deepest


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)


def text_in(body: Mapping[str, Any], name: str) -> str | None:
    """A field that is text where it is given. Raises InvalidParameter."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidParameter(f"{name} must be a string, not {value!r:.60}")
    return value


def truth_in(body: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """A field that is true or false; null is the default, as if it were left out. Raises InvalidParameter."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidParameter(f"{name} must be true or false, not {value!r:.60}")
    return value


def ping_s(body: Mapping[str, Any]) -> float | None:
    """How often a stream is to say that it is alive, if the request says so; infinite is never. Raises
    InvalidParameter."""
    value = body.get("sse_ping_interval")
    if value is None:
        return None
    seconds = whole_number("sse_ping_interval", value, -1, 2**31)
    return float(seconds) if seconds > 0 else math.inf
