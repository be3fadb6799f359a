"""A line in the log for each request, and its counts.

It knows requests and answers from outside: paths, statuses, times.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vkllm.faces.server.counts import Counts

_LOG = logging.getLogger("vkllm.access")


class AccessLog:
    """Stands before everything else."""

    def __init__(self, app: ASGIApp, counts: Counts, paths: Iterable[str], *, is_json: bool) -> None:
        """paths: that the server has; requests for others are counted together."""
        self._app = app
        self._counts = counts
        self._paths = frozenset(paths)
        self._is_json = is_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = scope["vkllm.started"] = time.perf_counter()
        status, n_bytes = 500, 0

        async def counting_send(message: Message) -> None:
            nonlocal status, n_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            n_bytes += len(message.get("body", b""))
            await send(message)

        self._counts.n_open += 1
        try:
            await self._app(scope, receive, counting_send)
        finally:
            self._counts.n_open -= 1
            seconds = time.perf_counter() - started
            status = scope.get("vkllm.status", status)
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._counts.answered(path, status, seconds)
            if _LOG.isEnabledFor(logging.INFO):
                _LOG.info(self._line(scope, status, n_bytes, seconds))

    def _line(self, scope: Scope, status: int, n_bytes: int, seconds: float) -> str:
        client, error = (scope.get("client") or ("-", 0))[0], scope.get("vkllm.error")
        if self._is_json:
            entry = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "client": client,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "bytes": n_bytes,
                "seconds": round(seconds, 6),
            }
            return json.dumps(entry if error is None else {**entry, "error": error})
        asked = json.dumps(f"{scope['method']} {scope['path']}")  # nothing in it can begin a line of its own
        return f"{client} {asked} {status} {n_bytes} bytes {seconds:.3f} s" + (f" ({error})" if error else "")
