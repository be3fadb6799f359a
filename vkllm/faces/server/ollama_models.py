"""ollama's API for models over HTTP: which there are, what they are, which are loaded; fetching and deleting.

What answers say of a model is `api/ollama/descriptions.py`'s.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.file_facts import FileFacts, file_facts
from vkllm.api.loading import LoadOptions
from vkllm.api.ollama import descriptions
from vkllm.api.ollama.options import is_stream, model_name
from vkllm.engine.file_sampling import file_sampling
from vkllm.errors import InvalidParameter, ModelNotFound, VkllmError
from vkllm.faces.server.answers import Json, Streamed, answered, line
from vkllm.faces.server.bodies import body_of
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.models import Models, ServedModel
from vkllm.faces.server.settings import ServerSettings
from vkllm.model.memory.limits import Tier
from vkllm.parameters import truth
from vkllm.store import HubRepo, installed, pull, remove, source_of
from vkllm.store.catalog import CatalogEntry, HubSource
from vkllm.store.ollama import DEFAULT_HOST, OllamaName

_TELL_S = 0.2
"""How often a download says how far it is."""


async def version(request: Request) -> Response:
    """The version of ollama's API that this is."""
    return Json({"version": descriptions.VERSION})


async def tags(request: Request) -> Response:
    """The models that are here."""
    models: Models = request.app.state.models
    found = [(name_of(model), model.known.path) for model in await models.all()]
    return Json({"models": await asyncio.to_thread(_tags, found)})


async def show(request: Request) -> Response:
    """What a model's file says."""
    body = await body_of(request)
    models: Models = request.app.state.models
    model = await models.find(model_name(body))
    is_verbose = truth("verbose", body.get("verbose") or False)
    return Json(await asyncio.to_thread(_shown, model, models.options, is_verbose))


async def processes(request: Request) -> Response:
    """The models that are loaded."""
    models: Models = request.app.state.models
    return Json({"models": [await _running(model) for model in models.served if model.is_loaded]})


async def fetch(request: Request) -> Response:
    """Fetches a model, as `vkllm pull` does."""
    body = await body_of(request)
    name = fetchable(model_name(body))
    check_may_fetch(request)
    if is_stream(body):
        pieces = _fetching(name)
        return Streamed(request, pieces, dialect="ollama", on_error=line, media_type="application/x-ndjson")
    await answered(request, asyncio.to_thread(pull, name))
    return Json({"status": "success"})


async def delete(request: Request) -> Response:
    """Deletes a model that vkllm has fetched."""
    await delete_model(request.app.state.models, model_name(await body_of(request)))
    return Response(status_code=200)


async def delete_model(models: Models, name: str) -> None:
    """Deletes a model that vkllm has fetched; a loaded one is unloaded before. Raises HttpError, InvalidParameter."""
    model = await models.find(name)
    if models.only is not None:
        raise HttpError(403, f"{model.name} is the model that this server was started with; it is not deleted")
    here = await asyncio.to_thread(installed)
    found = next((each for each in here if model.known.path in each.paths), None)
    if found is None:
        raise InvalidParameter(f"{model.name} was not fetched by vkllm, so it is not deleted; delete its file yourself")
    await models.unload(model)
    await asyncio.to_thread(remove, found)


async def not_here(request: Request) -> Response:
    """Refuses what changes models: vkllm runs files as they are."""
    raise HttpError(501, f"{request.url.path} is not in vkllm, which runs models' files as they are")


def name_of(model: ServedModel) -> str:
    """A model's name as ollama's clients write it: without the prefix of ollama's registry."""
    return model.name.removeprefix("ollama:")


def check_may_fetch(request: Request) -> None:
    """Raises HttpError where the server fetches nothing."""
    settings: ServerSettings = request.app.state.settings
    if settings.is_offline:
        raise HttpError(403, "this server was started with --offline, so it fetches nothing")


def fetchable(name: str) -> str:
    """vkllm's name for a model to fetch: of the catalogue, of the hub or of ollama's registry.

    Raises HttpError for others: a client must not make this machine read files or ask any address.
    """
    for each in (name, f"ollama:{name}"):
        match source_of(each):
            case CatalogEntry() | HubRepo() | HubSource():
                return each
            case OllamaName() as found if found.is_of_hub:
                return found.hub_name
            case OllamaName(host=host) if host == DEFAULT_HOST:
                return each
    raise HttpError(
        400, f"{name[:200]!r} is no model that can be fetched; name one of the catalogue, of ollama or hf.co"
    )


def _tags(found: list[tuple[str, Path | None]]) -> list[dict[str, Any]]:
    made = []
    for name, path in found:
        facts = _facts_or_none(path)
        if facts is not None and facts.problem is None:
            made.append(descriptions.tag(name, facts))
    return made


def _facts_or_none(path: Path | None) -> FileFacts | None:
    try:
        return None if path is None else file_facts(path)
    except (VkllmError, OSError):  # it is gone or damaged: the others are listed
        return None


def _shown(model: ServedModel, options: LoadOptions, is_verbose: bool) -> dict[str, Any]:
    if model.known.path is None:
        raise ModelNotFound(f"{model.name} is not on this machine yet")
    facts = file_facts(model.known.path, options.get("chat_template"))
    parameters = {**file_sampling(facts.metadata).values, **(options.get("sampling") or {})}
    return descriptions.shown(facts, parameters, is_verbose=is_verbose)


async def _running(model: ServedModel) -> dict[str, Any]:
    llm = model.llm.llm
    plan = llm.plan
    facts = await asyncio.to_thread(file_facts, llm.path)
    expires_s = None if math.isinf(model.keep_s) else time.time() + max(model.until_s - time.monotonic(), 0)
    local_bytes = sum(tier.used_bytes for tier in plan.tiers if tier.tier is Tier.LOCAL)
    return descriptions.running(
        name_of(model),
        facts,
        n_ctx=llm.n_ctx,
        total_bytes=plan.total_bytes,
        local_bytes=local_bytes,
        expires_s=expires_s,
    )


async def _fetching(name: str) -> AsyncGenerator[bytes]:
    """The lines of a download: what is fetched and how far it is, at last that it is here."""
    yield line({"status": "pulling manifest"})
    progress: dict[str, tuple[int, int]] = {}
    task = asyncio.ensure_future(asyncio.to_thread(pull, name, on_progress=_noting(progress)))
    told: dict[str, tuple[int, int]] = {}
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_TELL_S)
            for what, (done, total) in list(progress.items()):
                if told.get(what) != (done, total):
                    told[what] = (done, total)
                    yield line({"status": f"pulling {what}", "digest": what, "total": total, "completed": done})
        task.result()
    finally:
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    yield line({"status": "verifying sha256 digest"})
    yield line({"status": "success"})


def _noting(progress: dict[str, tuple[int, int]]) -> Callable[[str, int, int], None]:
    """Keeps how far each file is."""

    def on_progress(what: str, done_bytes: int, total_bytes: int) -> None:
        progress[what] = (done_bytes, total_bytes)

    return on_progress


ROUTES = [
    Route("/api/version", version),
    Route("/api/tags", tags),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/ps", processes),
    Route("/api/pull", fetch, methods=["POST"]),
    Route("/api/delete", delete, methods=["DELETE"]),
    *(Route(f"/api/{name}", not_here, methods=["POST"]) for name in ("create", "copy", "push")),
]
