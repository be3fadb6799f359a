"""The answer of a server that runs already, so that no model is loaded here.

It speaks OpenAI's interface, so other servers do as well. It knows HTTP; what is shown of an answer is terminal.py's.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from vkllm.api.answer import Piece
from vkllm.errors import InvalidParameter, VkllmError

_TIMEOUT_S = 600.0


class RemoteAnswer(Iterator[Piece]):
    """The pieces of an answer as they come. finish_reason, timings, usage, model: what the server said of it.

    Leaving its `with` block before its end closes the connection, which cancels the request.
    """

    def __init__(self, server: str, body: dict[str, Any]) -> None:
        """Sends a request for a chat, or for a text where the body has a prompt. Raises VkllmError."""
        self.finish_reason: str | None = None
        self.timings: dict[str, Any] = {}
        self.usage: dict[str, Any] = {}
        self.model = ""
        self._server = server
        base = server_address(server)
        path = "/completions" if "prompt" in body else "/chat/completions"
        key = os.environ.get("VKLLM_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        try:
            request = urllib.request.Request(base + path, data, headers)
            self._answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            raise VkllmError(f"{server}: {_told(error.read(65536)) or f'{error.code} {error.reason}'}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise VkllmError(f"{server} does not answer ({reason}); `vkllm serve MODEL` starts a server") from None

    def __next__(self) -> Piece:
        """The next piece. Raises VkllmError for what goes wrong on the way."""
        try:
            for line in self._answer:
                if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
                    continue
                if (piece := self._taken(json.loads(data))) is not None:
                    return piece
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise VkllmError(f"{self._server}: the answer broke off ({error})") from None
        raise StopIteration

    def _taken(self, chunk: dict[str, Any]) -> Piece | None:
        if "error" in chunk:
            raise VkllmError(f"{self._server}: {_told(json.dumps(chunk).encode())}")
        self.timings = chunk.get("timings") or self.timings
        self.usage = chunk.get("usage") or self.usage
        self.model = chunk.get("model") or self.model
        for choice in chunk.get("choices") or ():
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content") or ""
            reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
            if text or reasoning:
                return Piece(text, reasoning=reasoning)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._answer.close()


def server_address(server: str) -> str:
    """The base URL of OpenAI's interface on a server. Raises InvalidParameter."""
    url = server if "://" in server else f"http://{server}"
    if not url.startswith(("http://", "https://")) or not url.partition("://")[2].strip("/"):
        raise InvalidParameter(f"--server takes an address such as http://127.0.0.1:8080, not {server!r}")
    return url.rstrip("/").removesuffix("/v1") + "/v1"


def _told(body: bytes) -> str | None:
    """What the body of an error says."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return None
