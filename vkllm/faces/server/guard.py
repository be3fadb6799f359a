"""Who may use the server: hosts, websites, keys, and how many at a time. It stands before all endpoints.

It knows headers and paths, not what is asked for.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vkllm.faces.server.answers import error_response
from vkllm.faces.server.bodies import Bodies, Held
from vkllm.faces.server.errors import Dialect, HttpError
from vkllm.faces.server.settings import ServerSettings

PUBLIC_PATHS = {"/health", "/v1/health", "/", "/favicon.ico"}
"""What needs no key: whether the server is there, and the page, which asks for the key."""
_OPENAI_PATHS = {"/v1", "/models", "/chat", "/completions", "/embeddings", "/responses", "/health", "/openapi.json"}
_ANY = "*"


def dialect_of(path: str) -> Dialect:
    """In whose form errors of a path are."""
    if path.startswith("/api/"):
        return "ollama"
    if path.startswith("/v1/messages"):
        return "anthropic"
    first = "/" + path.split("/", 2)[1] if path.startswith("/") else path
    return "openai" if first in _OPENAI_PATHS else "llama.cpp"


class Guard:
    """Refuses requests that may not be answered; lets the others through, with CORS' headers."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, bodies: Bodies) -> None:
        self._app = app
        self._settings = settings
        self._bodies = bodies
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request or passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cors = cors_headers(headers.get("origin"), self._settings)

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start" and cors:  # as they are written, which some clients rely on
                more = [(name.encode(), value.encode("latin-1")) for name, value in cors.items()]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        held = scope["vkllm.held"] = Held(self._bodies)
        try:
            check_host(headers.getlist("host"), self._settings)
            if scope["method"] == "OPTIONS":
                await Response(status_code=200)(scope, receive, send_with_cors)
                return
            check_origin(headers.get("origin"), headers.get("host"), self._settings)
            if scope["path"] not in PUBLIC_PATHS:
                self._check_key(headers)
        except HttpError as error:
            await error_response(error, dialect_of(scope["path"]))(scope, receive, send_with_cors)
            return
        try:
            await self._app(scope, receive, send_with_cors)
        finally:
            held.release()

    def _check_key(self, headers: Mapping[str, str]) -> None:
        if not self._keys:
            return
        given = headers.get("authorization", "") or headers.get("x-api-key", "")
        scheme, space, rest = given.partition(" ")
        key = rest.strip() if space and scheme.lower() == "bearer" else given
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        # All are compared, each in a time that tells nothing of where they differ.
        if sum([hmac.compare_digest(digest, known) for known in self._keys]) == 0:
            raise HttpError(
                401,
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`",
                code="invalid_api_key",
            )


def check_host(hosts: Sequence[str], settings: ServerSettings) -> None:
    """Raises HttpError unless the request names this server: a website whose name was pointed at this machine's
    address (DNS rebinding) names itself."""
    if _ANY in settings.allowed_hosts:
        return
    if len(hosts) != 1:
        raise HttpError(400, "the request must have one Host header")
    name = host_name(hosts[0])
    bound = [part.strip().lower().strip("[]") for part in settings.host.split(",")]
    allowed = {*bound, *(host_name(host) for host in settings.allowed_hosts)} - {None, ""}
    if name is None or not (is_loopback(name) or name in allowed or (_is_everywhere(bound) and _is_address(name))):
        raise HttpError(
            403,
            f"the host {hosts[0][:100]!r} is not this server's; --allowed-hosts lets it be reached by more names",
            kind="permission_error",
        )


def check_origin(origin: str | None, host: str | None, settings: ServerSettings) -> None:
    """Raises HttpError for pages of websites that may not use the server."""
    if origin is None or allows_origin(origin, settings) or _is_same(origin, host):
        return
    raise HttpError(
        403,
        f"pages of {origin[:100]!r} may not use this server; start it with --cors-origins to allow them",
        kind="permission_error",
    )


def allows_origin(origin: str, settings: ServerSettings) -> bool:
    """Whether CORS allows an origin. Programs that show pages of their own, as editors do, are no websites."""
    allowed = settings.cors_origins
    if _ANY in allowed or origin in allowed:
        return True
    if origin == "null":
        return False
    scheme, colon, rest = origin.partition("://")
    if "localhost" not in allowed:
        return False
    if colon and scheme.lower() not in ("http", "https"):
        return True
    name = host_name(rest if colon else origin)
    return name is not None and is_loopback(name)


def cors_headers(origin: str | None, settings: ServerSettings) -> dict[str, str]:
    """What tells a browser that the page of an origin may read the answer; nothing where it may not."""
    if origin is None or not allows_origin(origin, settings):
        return {}
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": settings.cors_methods,
        "Access-Control-Allow-Headers": settings.cors_headers,
        "Vary": "Origin",
    }
    if settings.has_cors_credentials:
        headers["Access-Control-Allow-Credentials"] = "true"
    return headers


def host_name(host: str) -> str | None:
    """The name or address in a Host header, without its port; None for what is no host."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != host or "@" in host or not parts.hostname:
        return None
    return parts.hostname.lower().rstrip(".")


def is_loopback(name: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_everywhere(bound: Sequence[str]) -> bool:
    """Whether the server listens at all addresses; then an address is its own, and only names can be foreign."""
    return any(host in ("0.0.0.0", "::", "") for host in bound)


def _is_same(origin: str, host: str | None) -> bool:
    """Whether a page comes from this server."""
    scheme, colon, rest = origin.partition("://")
    return bool(colon) and scheme.lower() in ("http", "https") and host is not None and rest.lower() == host.lower()
