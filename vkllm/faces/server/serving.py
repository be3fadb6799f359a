"""Runs the server: sockets, connections, signals. Told to end, it is gone within two seconds.

It knows uvicorn (and is the only file that does), and nothing of what is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vkllm.errors import InvalidParameter, VkllmError
from vkllm.faces.server.app import create_app
from vkllm.faces.server.models import Models, ServedModel
from vkllm.faces.server.settings import ServerSettings

_MAX_HEADER_BYTES = 64 * 1024
_KEEP_ALIVE_S = 30
_BACKLOG = 512
_SEND_BYTES = 256 * 1024
"""What the system may hold of an answer for a client that does not read it; it would take some megabytes."""
_SWITCH_S = 0.0005
"""How long a thread that renders templates or tokenizes keeps the loop waiting: Python's 5 ms add up to more than the
100 ms in which `/health` is to answer, where several do."""
_CLOSE_S = 0.6
"""How long all may take that comes after the last answer."""

OnListening = Callable[[list[str], Callable[[], object]], object]
"""Gets the addresses of the server, and what ends it, from any thread."""


def serve(
    models: Models,
    settings: ServerSettings,
    *,
    on_listening: OnListening = lambda addresses, stop: None,
) -> None:
    """Serves until SIGTERM or SIGINT. on_listening: called before any model is loaded.

    Raises InvalidParameter where the server cannot listen or its certificate cannot be used, and what loading raises
    where its only model cannot be loaded.
    """
    check_certificate(settings)
    sockets = listening(settings)
    try:
        asyncio.run(_serve(models, settings, sockets, on_listening))
    finally:
        gc.unfreeze()
        for each in sockets:
            each.close()


def _pass_over_what_stays(model: ServedModel) -> None:
    """Collections of garbage, which hold the loop up for 0.1 s where they look at all modules and a vocabulary, look
    from now on at what comes after a model was loaded."""
    if model.status == "loaded":
        gc.unfreeze()
        gc.collect()
        gc.freeze()


async def _serve(
    models: Models, settings: ServerSettings, sockets: list[socket.socket], on_listening: OnListening
) -> None:
    sys.setswitchinterval(_SWITCH_S)
    models.on_change.append(_pass_over_what_stays)
    asyncio.get_running_loop().set_default_executor(_Threads())
    app = create_app(models, settings)
    config = uvicorn.Config(
        app,
        http=_protocol(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        backlog=_BACKLOG,
        ssl_keyfile=settings.ssl_key_file,
        ssl_certfile=settings.ssl_cert_file,
    )
    server = _Server(config, settings.grace_s, app.state.closing)
    failures: list[VkllmError] = []

    def on_change(model: ServedModel) -> None:
        """The first load decides: later failures are told to those who ask."""
        if model.status == "failed" and model.error is not None:
            failures.append(model.error)
            server.should_exit = True
        if model.status in ("failed", "loaded"):
            models.on_change.remove(on_change)

    if models.is_single:
        models.on_change.append(on_change)
    loop = asyncio.get_running_loop()
    on_listening(addresses(sockets, is_safe=config.is_ssl), lambda: loop.call_soon_threadsafe(server.end))
    await server.serve(sockets)
    if failures:
        raise failures[0]


def check_certificate(settings: ServerSettings) -> None:
    """Raises InvalidParameter for a key and a certificate of TLS that cannot be used, or one without the other."""
    key, certificate = settings.ssl_key_file, settings.ssl_cert_file
    if key is None and certificate is None:
        return
    if key is None or certificate is None:
        raise InvalidParameter("--ssl-key-file and --ssl-cert-file belong together; give both, or none for plain HTTP")

    def no_password() -> str:  # else it would be asked for at the terminal
        raise ValueError("it has a password; give a key without one")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, no_password)
    except (OSError, ValueError) as error:  # ssl's errors are OSErrors
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InvalidParameter(
            f"--ssl-key-file {key} and --ssl-cert-file {certificate} cannot be used ({reason}); "
            "both have to be PEM, and belong together"
        ) from None


def listening(settings: ServerSettings) -> list[socket.socket]:
    """A socket for each address of the host. Raises InvalidParameter where there can be none."""
    sockets: list[socket.socket] = []
    port = settings.port
    for host in settings.host.split(","):
        name = host.strip().strip("[]")
        try:
            found = socket.getaddrinfo(name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            made = socket.socket(family, kind, protocol)
            sockets.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)  # connections inherit it
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(name != "::"))
            made.bind(address)
            made.listen(_BACKLOG)
            port = made.getsockname()[1]
        except (OSError, OverflowError, UnicodeError) as error:
            for each in sockets:
                each.close()
            reason = getattr(error, "strerror", None) or error
            raise InvalidParameter(
                f"the server cannot listen at {name} port {port} ({reason}); choose others with --host and --port"
            ) from None
    return sockets


def addresses(sockets: Sequence[socket.socket], *, is_safe: bool = False) -> list[str]:
    """Where the server can be reached, as browsers write it."""
    made, scheme = [], "https" if is_safe else "http"
    for each in sockets:
        host, port = each.getsockname()[:2]
        made.append(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    return made


class _Threads(ThreadPoolExecutor):
    """Threads that the end of the server does not wait for: one may wait for an engine in the middle of a step."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more work, and waits for none."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


class _Server(uvicorn.Server):
    """Ends in time: what runs may go on for some time, then it is told that the server ends."""

    def __init__(self, config: uvicorn.Config, grace_s: float, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._grace_s = grace_s
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets answers end, or ends them."""
        asyncio.get_running_loop().call_later(self._grace_s, self._closing.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(super().shutdown(sockets), self._grace_s + _CLOSE_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Ends at a signal, which is no error: the process is not killed by it afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self) -> None:
        """Ends the server as a signal does."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The second signal ends without waiting for answers."""
        if self.should_exit:
            self._closing.set()
            self.force_exit = True
        self.should_exit = True


def _protocol(settings: ServerSettings) -> type[asyncio.Protocol]:
    """A connection that is refused where there are too many, and closed where no request comes."""

    class Connection(H11Protocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._next_app = self.app
            self.app = self._run
            self._waiting: asyncio.TimerHandle | None = None

        async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope["vkllm.abort"] = self.transport.abort
            await self._next_app(scope, receive, send)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                transport.write(_TOO_MANY)
                transport.close()
                return
            self._wait_for_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()

        def send_400_response(self, msg: str) -> None:
            """Says in JSON what is wrong, unless an answer has begun already."""
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                self.transport.write(_NO_HTTP)
            self.transport.close()

        def on_response_complete(self) -> None:
            self._wait_for_request()
            super().on_response_complete()

        def _wait_for_request(self) -> None:
            self._stop_waiting()
            self._waiting = self.loop.call_later(settings.read_s, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Connection


def _raw_response(status: str, message: str, kind: str, header: str = "") -> bytes:
    body = json.dumps({"error": {"code": int(status[:3]), "message": message, "type": kind}}).encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{header}Connection: close\r\n\r\n"
    )
    return head.encode() + body


_TOO_MANY = _raw_response(
    "503 Service Unavailable",
    "the server has as many connections as it takes; try again soon",
    "unavailable_error",
    "Retry-After: 1\r\n",
)
_NO_HTTP = _raw_response(
    "400 Bad Request",
    "this is no HTTP/1.1 that the server understands: check the request's first line and its headers (Host, "
    "Content-Length and Transfer-Encoding among them), and https where the server speaks http",
    "invalid_request_error",
)
