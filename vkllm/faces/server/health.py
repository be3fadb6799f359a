"""`/health`: whether the server answers requests."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.async_llm import is_alive, revive
from vkllm.faces.server.answers import Json, error_response
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.models import Models
from vkllm.faces.server.ready import not_ready


async def health(request: Request) -> Response:
    """200 when the model is loaded and its engine lives, 503 until then. A dead engine is started again."""
    state = request.app.state
    error = not_ready(state) or _dead_engine(state)
    return Json({"status": "ok"}) if error is None else error_response(error, "llama.cpp")


def _dead_engine(state: Any) -> HttpError | None:
    """An error where the engine of a model has died, which is being started again."""
    models: Models = state.models
    dead = [model for model in models.served if model.is_loaded and not is_alive(model.llm)]
    for model in dead:
        if model.name not in state.reviving:
            task = asyncio.ensure_future(revive(model.llm))
            state.reviving[model.name] = task
            task.add_done_callback(partial(_revived, state, model.name))
    if not dead:
        return None
    return HttpError(503, f"the engine of {dead[0].name} has died; it is being started again", retry_after_s=1)


def _revived(state: Any, name: str, task: asyncio.Task[None]) -> None:
    del state.reviving[name]
    if not task.cancelled():
        task.exception()  # the next request is told of it


ROUTES = [Route("/health", health), Route("/v1/health", health)]
