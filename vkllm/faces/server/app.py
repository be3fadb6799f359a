"""The application: all endpoints, behind what guards them.

It joins the other files of this folder; `serving.py` runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vkllm.errors import VkllmError
from vkllm.faces.server import (
    anthropic,
    embeddings,
    health,
    llama_cpp,
    llama_cpp_models,
    metrics,
    ollama,
    ollama_models,
    openai,
    openai_models,
    openapi,
    page,
    rerank,
    responses,
)
from vkllm.faces.server.access_log import AccessLog
from vkllm.faces.server.answers import HungUp, error_response
from vkllm.faces.server.bodies import Bodies
from vkllm.faces.server.counts import Counts
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.guard import PUBLIC_PATHS, Guard, dialect_of
from vkllm.faces.server.models import Models
from vkllm.faces.server.ready import not_ready
from vkllm.faces.server.settings import ServerSettings

_WITHOUT_MODEL = PUBLIC_PATHS | {"/models", "/v1/models", "/metrics", "/api/version", "/api/tags", "/openapi.json"}
"""What is answered while the model is still being loaded."""

_CLOSE_S = 0.4
"""How long an engine may take to end after the last answer; its process ends by itself if it takes longer."""

ROUTES: list[Route] = [
    *health.ROUTES,
    *metrics.ROUTES,
    *openai.ROUTES,
    *openai_models.ROUTES,
    *embeddings.ROUTES,
    *rerank.ROUTES,
    *responses.ROUTES,
    *openapi.ROUTES,
    *anthropic.ROUTES,
    *ollama.ROUTES,
    *ollama_models.ROUTES,
    *llama_cpp.ROUTES,
    *llama_cpp_models.ROUTES,
    *page.ROUTES,
]


def create_app(models: Models, settings: ServerSettings | None = None) -> Starlette:
    """The application of a server.

    Its state has what endpoints use: models, settings, bodies, and closing, which is set when answers must end.
    """
    settings = settings or ServerSettings()
    bodies, counts = Bodies(settings), Counts()
    paths = [route.path for route in ROUTES]
    app = Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(AccessLog, counts=counts, paths=paths, is_json=settings.is_log_json),
            Middleware(Guard, settings=settings, bodies=bodies),
            Middleware(Errors),
        ],
        lifespan=_lifespan,
        exception_handlers={HTTPException: _told, VkllmError: _told, HungUp: _nobody, ClientDisconnect: _nobody},
    )
    app.router.redirect_slashes = False
    app.state.models = models
    app.state.settings = settings
    app.state.counts = counts
    app.state.bodies = bodies
    app.state.closing = asyncio.Event()
    app.state.reviving = {}
    app.state.model_events = llama_cpp_models.Events()
    models.on_change.append(app.state.model_events.changed)
    return app


class Errors:
    """Answers with 503 before the model is loaded, and with 500 where vkllm makes a mistake."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        dialect, has_begun = dialect_of(scope["path"]), False

        async def noting_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            error = None if scope["path"] in _WITHOUT_MODEL else not_ready(scope["app"].state)
            if error is not None:
                raise error
            await self._app(scope, receive, noting_send)
        except Exception as error:
            if has_begun:
                raise
            await error_response(error, dialect)(scope, receive, send)


async def _told(request: Request, error: Exception) -> Response:
    more: Mapping[str, str] = {}
    if isinstance(error, HTTPException):
        more = error.headers or {}  # which methods there are
        error = HttpError(error.status_code, _http_words(request, error))
    response = error_response(error, dialect_of(request.url.path))
    response.headers.update(more)
    return response


def _http_words(request: Request, error: HTTPException) -> str:
    path = request.url.path[:200]
    if error.status_code == 404:
        return f"there is no {request.method} {path} on this server"
    if error.status_code == 405:
        return f"{path} does not take {request.method}"
    return str(error.detail)


async def _nobody(request: Request, error: Exception) -> Response:
    request.scope["vkllm.status"] = 499
    return Response(status_code=499)


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    models: Models = app.state.models
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(models.unload_idle())]
    if models.only is not None:
        loading: Awaitable[None] = models.load(models.only)
        tasks.append(asyncio.ensure_future(loading))
        tasks[-1].add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        yield
    finally:
        app.state.closing.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):  # threads go on with it, for which the server does not wait
            await asyncio.wait_for(models.close(), _CLOSE_S)
