"""`/v1/models`: which models there are, for clients of OpenAI's and Anthropic's API, of llama.cpp's server and for Zed.

It knows the shape of the list; models are `models.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.llm import LLM
from vkllm.faces.server.answers import Json
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.models import Models, ServedModel

_TEXT = {"input_modalities": ["text"], "output_modalities": ["text"]}


async def list_models(request: Request) -> Response:
    """All models that a request may name, loaded or not."""
    models: Models = request.app.state.models
    found, tags = await models.all(), request.app.state.settings.tags
    return Json(
        {
            "object": "list",
            "data": await asyncio.to_thread(lambda: [described(model, tags) for model in found]),
            "models": [{"name": model.name, "model": model.name, "type": "model"} for model in found],
            "has_more": False,  # as Anthropic's clients read it
            "first_id": found[0].name if found else None,
            "last_id": found[-1].name if found else None,
        }
    )


async def one_model(request: Request) -> Response:
    """The model of a name. 404 for a name of none: here a name asks whether the model is there."""
    models: Models = request.app.state.models
    name = request.path_params["name"]
    model = await models.find(name)
    if models.only is not None and name not in (model.name, *model.aliases):
        raise HttpError(404, f"there is no model {name[:100]!r} on this server", code="model_not_found", param="model")
    return Json(described(model, request.app.state.settings.tags))


def described(model: ServedModel, tags: Sequence[str] = ()) -> dict[str, Any]:
    """A model as the list has it. meta: what the file and the load say, while it is loaded."""
    entry: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "type": "model",  # this, the name to show and the date are what Anthropic's clients read
        "display_name": model.name,
        "created": model.created_s,
        "created_at": datetime.fromtimestamp(model.created_s, UTC).isoformat(timespec="seconds"),
        "owned_by": "vkllm",
        "aliases": sorted({model.name, *model.aliases}),
        "tags": sorted(set(tags)),
        "status": {"value": model.status},
        "architecture": _TEXT,
        "path": None if model.known.path is None else str(model.known.path),
    }
    if model.status == "failed":
        entry["status"]["error"] = str(model.error)
    if model.is_loaded:
        entry["meta"] = _meta(model.llm.llm)
    return entry


def _meta(llm: LLM) -> dict[str, Any]:
    return {
        "n_ctx": llm.n_ctx,
        "n_ctx_train": llm.spec.n_ctx_train,
        "n_vocab": llm.tokenizer.n_vocab,
        "n_embd": llm.spec.d_model,
        "n_params": llm.n_params,
        "size": llm.n_bytes,
        "ftype": llm.quantization,
        "device": llm.device_name,
    }


ROUTES = [
    Route("/v1/models", list_models),
    Route("/models", list_models),
    Route("/v1/models/{name:path}", one_model),
]
