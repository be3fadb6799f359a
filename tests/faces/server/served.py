"""A server in a thread of the tests' process, whose engine is fake_engine.FakeEngine, for real clients."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vkllm.faces.server.models import Models
from vkllm.faces.server.names import KnownModels
from vkllm.faces.server.serving import serve
from vkllm.faces.server.settings import ServerSettings
from vkllm.store import FoundModel


class Served:
    """A running server. url: its address. stop: ends it."""

    def __init__(self, url: str, models: Models, stop: Callable[[], object]) -> None:
        self.url = url
        self.models = models
        self.stop = stop
        self.host, _, port = url.partition("://")[2].rpartition(":")
        self.port = int(port)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Sends one request; returns status, headers, and the body as JSON where it is that."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, json.loads(raw) if "application/json" in found.get("content-type", "") else raw

    def events(self, path: str, body: Any) -> list[Any]:
        """The data of all events of a stream."""
        _, _, raw = self.request("POST", path, body)
        lines = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


def single(model: Path, *, options: dict[str, Any] | None = None, **more: Any) -> Models:
    """The models of a server that has one."""
    return Models(KnownModels(), only=FoundModel(str(model), None, model), options=options, **more)


@contextmanager
def serving(models: Models, settings: ServerSettings | None = None, *, waits: bool = True) -> Iterator[Served]:
    """Runs a server until the block ends. waits: until its model is loaded."""
    is_listening, made = threading.Event(), []

    def on_listening(addresses: list[str], stop: Callable[[], object]) -> None:
        made.append(Served(addresses[0], models, stop))
        is_listening.set()

    settings = settings or ServerSettings(port=0)
    thread = threading.Thread(target=serve, args=(models, settings), kwargs={"on_listening": on_listening})
    thread.start()
    assert is_listening.wait(120)
    try:
        is_loaded = threading.Event()
        while waits and made[0].request("GET", "/health")[0] != 200:
            is_loaded.wait(0.02)
        yield made[0]
    finally:
        with suppress(RuntimeError):  # a test has stopped it
            made[0].stop()
        thread.join(120)
        assert not thread.is_alive()
