"""`/health`: whether the server answers requests."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.faces.server.answers import Json, error_response
from vkllm.faces.server.ready import not_ready


async def health(request: Request) -> Response:
    """200 when the model is loaded and its engine lives, 503 until then."""
    if (error := not_ready(request.app.state)) is not None:
        return error_response(error, "llama.cpp")
    return Json({"status": "ok"})


ROUTES = [Route("/health", health), Route("/v1/health", health)]
