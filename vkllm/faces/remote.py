"""A server that runs already, and answers that come from it, so that no model is loaded here.

It speaks OpenAI's interface, so other servers do as well. It knows HTTP; what is shown of an answer is terminal.py's.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from vkllm.api.answer import FinishReason, Piece
from vkllm.engine.events import RunStats
from vkllm.errors import ContextOverflow, InvalidParameter, ModelNotFound, VkllmError
from vkllm.faces.thoughts import KeptText

_ANSWER_S = 600.0
_MOST_BYTES = 16 * 2**20
_FAILURES = (OSError, http.client.HTTPException, ValueError)  # of connections, of what comes, of what is no JSON


class Server:
    """Where a server is, and the key that it wants. name: host and port. Raises InvalidParameter for what is no
    address."""

    def __init__(self, address: str, key: str | None = None) -> None:
        """key: if None, that in VKLLM_API_KEY. A key is sent to this server only, also where it names another one."""
        url = address if "://" in address else f"http://{address}"
        try:
            parts = urlsplit(url)
            is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_sound = False
        if not is_sound or parts.query or parts.fragment or parts.username is not None:
            raise InvalidParameter(f"--server takes an address such as http://127.0.0.1:8080, not {address!r}")
        key = key or os.environ.get("VKLLM_API_KEY") or "none"
        if not (key.isascii() and key.isprintable()):
            raise InvalidParameter("the API key has characters that no header can have; give it as the server knows it")
        self.name = parts.netloc
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._is_safe, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._path = urlsplit(self.url).path
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        kind = http.client.HTTPSConnection if self._is_safe else http.client.HTTPConnection
        return kind(self._host or "", self._port, timeout=timeout_s)

    def send(
        self, connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any] | None = None
    ) -> http.client.HTTPResponse:
        """Sends a request over a connection. Raises what a server tells as an error, and what connections raise."""
        data = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", self._path + path, data, self._headers)
        response = connection.getresponse()
        if response.status != 200:
            raise self._problem(response.status, response.reason, response.read(65536))
        return response

    def ask(self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 30.0) -> Any:
        """The JSON that a path answers: to a POST where there is a body. Raises VkllmError."""
        connection = self.connection(timeout_s)
        try:
            with contextlib.closing(connection):
                return json.loads(self.send(connection, path, body).read(_MOST_BYTES))
        except _FAILURES as error:
            raise self.silence(error) from None

    def silence(self, error: Exception) -> VkllmError:
        """What is told where no answer comes."""
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return VkllmError(f"{self.name} does not answer ({reason}); `vkllm serve MODEL` starts a server")

    def _problem(self, status: int, reason: str, body: bytes) -> VkllmError:
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            error = None
        return self.told(error if error is not None else f"{status} {reason}".strip(), status)

    def told(self, error: Any, status: int = 500) -> VkllmError:
        """An error of the server. error: what it says of it."""
        facts = error if isinstance(error, Mapping) else {"message": error}
        text = f"{self.name}: {facts.get('message')}"
        if status == 401:
            return VkllmError(f"{self.name} wants another API key; give it with --api-key or in VKLLM_API_KEY")
        if "context" in f"{facts.get('type')} {facts.get('code')}":
            return ContextOverflow(text)
        if status in (400, 422):
            return InvalidParameter(text)
        return ModelNotFound(text) if status == 404 else VkllmError(text)


class Ended(NamedTuple):
    """How an answer ended, as `Generation` has it. stats: what the server told of it; zeros are not known."""

    finish_reason: FinishReason
    stats: RunStats


class RemoteAnswer(Iterator[Piece]):
    """The pieces of an answer as they come. timings, usage, model: what the server said of it. kept: what has come so
    far, as chats keep it.

    `close()`, from any thread, closes the connection, which cancels the request; no more pieces come then.
    """

    def __init__(self, server: Server, body: Mapping[str, Any]) -> None:
        """body: of a chat, or of a text where it has a prompt. It is sent by `begin`, or for the first piece."""
        self.timings: dict[str, Any] = {}
        self.usage: dict[str, Any] = {}
        self.model = ""
        self.kept = ""
        self._text = KeptText()
        self._server = server
        self._body = {**_as_others_write(body), "stream": True, "stream_options": {"include_usage": True}}
        self._connection = server.connection(_ANSWER_S)
        self._response: http.client.HTTPResponse | None = None
        self._reason: str | None = None
        self._lock = threading.Lock()  # guards the next two
        self._socket: socket.socket | None = None
        self._is_closed = False

    def begin(self) -> Self:
        """Sends the request and waits until the server answers. Raises VkllmError."""
        path = "/v1/completions" if "prompt" in self._body else "/v1/chat/completions"
        try:
            self._connection.connect()
            with self._lock:
                self._socket = self._connection.sock
            if not self._is_closed:
                self._response = self._server.send(self._connection, path, self._body)
        except _FAILURES as error:
            self._connection.close()
            if not self._is_closed:
                raise self._server.silence(error) from None
        except VkllmError:
            self._connection.close()
            raise
        return self

    def __next__(self) -> Piece:
        """The next piece. Raises VkllmError for what goes wrong on the way."""
        try:
            if self._response is None and not self._is_closed:
                self.begin()
            for line in self._response or ():
                if not line.startswith(b"data:"):
                    continue
                if (data := line[5:].strip()) == b"[DONE]":
                    self._reason = self._reason or "stop"
                    break
                if (piece := self._taken(json.loads(data))) is not None:
                    self.kept += self._text.add(piece.reasoning, piece)
                    return piece
            if self._reason is None and not self._is_closed:
                raise VkllmError(f"{self._server.name}: the answer broke off (the connection was closed)")
        except _FAILURES as error:
            if not self._is_closed:
                raise VkllmError(f"{self._server.name}: the answer broke off ({error})") from None
        except VkllmError:
            self._connection.close()
            raise
        self._connection.close()
        raise StopIteration

    def _taken(self, chunk: Any) -> Piece | None:
        if not isinstance(chunk, dict):
            raise ValueError(f"{chunk!r:.60} is no part of an answer")
        if "error" in chunk:
            raise self._server.told(chunk["error"])
        self.timings = chunk.get("timings") or self.timings
        self.usage = chunk.get("usage") or self.usage
        self.model = chunk.get("model") or self.model
        for choice in chunk.get("choices") or ():
            self._reason = choice.get("finish_reason") or self._reason
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content") or ""
            reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
            if text or reasoning:
                return Piece(text, reasoning=reasoning)
        return None

    def close(self) -> None:
        """Ends the answer."""
        with self._lock:
            self._is_closed = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # a thread that reads wakes up; it closes the connection
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def result(self) -> Ended:
        """How it ended, after its last piece."""
        reason: FinishReason = "length" if self._reason == "length" else "stop"
        cached = (self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        timed = {name: _number(self.timings.get(name)) / 1000 for name in ("prompt_ms", "predicted_ms")}
        stats = RunStats(
            n_prompt=int(_number(self.usage.get("prompt_tokens"))),
            n_cached=int(_number(cached)),
            n_generated=int(_number(self.usage.get("completion_tokens"))),
            prompt_s=timed["prompt_ms"],
            first_token_s=timed["prompt_ms"],
            generate_s=timed["predicted_ms"],
        )
        return Ended("cancelled" if self._is_closed and self._reason is None else reason, stats)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        self._connection.close()


def _as_others_write(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body whose parameters other servers understand too, where vkllm's takes both ways of writing."""
    made = dict(body)
    if "repetition_penalty" in made:
        made["repeat_penalty"] = made.pop("repetition_penalty")
    if isinstance(schema := made.get("json_schema"), str):
        made["json_schema"] = json.loads(schema)
    return made


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0
