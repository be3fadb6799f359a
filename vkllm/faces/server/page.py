"""The page at /: a chat in the browser, one file that asks for nothing but this server's own API."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.settings import ServerSettings


async def page(request: Request) -> Response:
    """The page. It needs no key; what it asks for does."""
    settings: ServerSettings = request.app.state.settings
    if not settings.has_page:
        raise HttpError(404, "this server was started without its page")
    text, policy = _page()
    return HTMLResponse(
        text,
        headers={
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


async def icon(request: Request) -> Response:
    """There is none."""
    return Response(status_code=204)


@functools.cache
def _page() -> tuple[str, str]:
    """The page, and what a browser may do with it: run its own script and style, and ask this server."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    script, style = (_hash(text, tag) for tag in ("script", "style"))
    return text, (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text: str, tag: str) -> str:
    inside = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


ROUTES = [Route("/", page), Route("/favicon.ico", icon)]
