"""llama.cpp's endpoints for the server and its models: props, slots, adapters; loading, fetching, deleting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.file_facts import FileFacts, file_facts
from vkllm.api.llama_cpp.answers import generation_settings
from vkllm.api.llm import LLM
from vkllm.api.loading import LoadOptions
from vkllm.engine.file_sampling import file_sampling
from vkllm.engine.params import SamplingParams
from vkllm.errors import VkllmError
from vkllm.faces.server.answers import Json, Streamed, event
from vkllm.faces.server.bodies import body_of, text_in
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.models import Models, ServedModel
from vkllm.faces.server.ollama_models import check_may_fetch, delete_model, fetchable
from vkllm.faces.server.settings import ServerSettings
from vkllm.sizes import size
from vkllm.store import pull

_TIERS = {"local": "the GPU's memory", "shared": "memory that it shares", "host": "system memory"}
_TOLD_EVENTS = 1000
"""Events that wait for a client; one that reads none loses the older ones."""


async def props(request: Request) -> Response:
    """What the server is, or with ?model=NAME what a model is. It loads none."""
    models: Models = request.app.state.models
    settings: ServerSettings = request.app.state.settings
    name = request.query_params.get("model")
    if models.only is None and not name:
        return Json(
            {
                "role": "router",
                "max_instances": models.most or 0,
                "models_autoload": models.loads_on_request,
                "model_alias": "vkllm",
                "model_path": "none",
                "default_generation_settings": {"params": {}, "n_ctx": 0},
                "build_info": build_info(),
            }
        )
    return Json(await asyncio.to_thread(_props, await models.find(name), models.options, settings))


async def slots(request: Request) -> Response:
    """How many requests run: each takes a slot."""
    settings: ServerSettings = request.app.state.settings
    if not settings.has_slots:
        raise HttpError(501, "this server does not tell of its slots; start it without --no-slots")
    models: Models = request.app.state.models
    model = await models.find(request.query_params.get("model"))
    n_ctx = model.llm.llm.n_ctx if model.is_loaded else 0
    made: list[dict[str, Any]] = []
    for number in range(model.n_parallel):
        is_busy = number < model.n_users
        made.append({"id": number, "n_ctx": n_ctx, "speculative": False, "is_processing": is_busy})
    return Json(made)


async def no_slot_files(request: Request) -> Response:
    """Refuses to save and restore slots."""
    raise HttpError(501, "vkllm's slots are not saved; beginnings of prompts that were seen stay cached by themselves")


async def no_proxy(request: Request) -> Response:
    """Refuses to fetch other addresses for the pages of llama-server, as it does unless it is told to."""
    raise HttpError(403, "this server fetches nothing from other addresses for web pages")


async def adapters(request: Request) -> Response:
    """There are none."""
    if request.method == "POST":
        message = "adapters (LoRA) are not in vkllm; take a model that they are merged into"
        raise HttpError(400, message, kind="not_supported_error")
    return Json([])


async def load(request: Request) -> Response:
    """Begins to load a model."""
    models: Models = request.app.state.models
    model = await models.find(text_in(await body_of(request), "model"))
    if model.is_loaded or model.status == "loading":
        raise HttpError(400, f"{model.name} is loaded already")
    request.app.state.loads = loads = {task for task in getattr(request.app.state, "loads", ()) if not task.done()}
    task = asyncio.ensure_future(models.load(model))
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # told by the model's status
    loads.add(task)
    await asyncio.sleep(0)
    return Json({"success": True})


async def unload(request: Request) -> Response:
    """Unloads a model."""
    models: Models = request.app.state.models
    model = await models.find(text_in(await body_of(request), "model"))
    if not model.is_loaded:
        raise HttpError(400, f"{model.name} is not loaded")
    await models.unload(model)
    return Json({"success": True})


async def fetch(request: Request) -> Response:
    """Begins to fetch a model; /models/sse tells how far it is."""
    name = fetchable(text_in(await body_of(request), "model") or "")
    check_may_fetch(request)
    events: Events = request.app.state.model_events
    loop = asyncio.get_running_loop()

    def on_progress(what: str, done: int, total: int) -> None:
        data = {what: {"done": done, "total": total}}
        loop.call_soon_threadsafe(events.tell, name, "download_progress", data)

    async def run() -> None:
        try:
            await asyncio.to_thread(pull, name, on_progress=on_progress)
            events.tell(name, "download_finished", {})
        except VkllmError as error:
            events.tell(name, "download_failed", {"message": str(error)})

    task = asyncio.ensure_future(run())
    events.tasks.add(task)
    task.add_done_callback(events.tasks.discard)
    return Json({"success": True})


async def delete(request: Request) -> Response:
    """Deletes a model that vkllm has fetched."""
    models: Models = request.app.state.models
    name = request.query_params.get("model", "")
    await delete_model(models, name)
    request.app.state.model_events.tell(name, "model_remove", {})
    return Json({"success": True})


class Events:
    """Tells clients what becomes of models."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._queues: set[asyncio.Queue[dict[str, Any]]] = set()

    def tell(self, model: str, kind: str, data: dict[str, Any]) -> None:
        """Tells all clients of an event."""
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait({"model": model, "event": kind, "data": data})

    def changed(self, model: ServedModel) -> None:
        """Tells of a model's new status."""
        self.tell(model.name, "model_status", {"status": model.status})

    async def stream(self) -> AsyncGenerator[bytes]:
        """The events from now on."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_TOLD_EVENTS)
        self._queues.add(queue)
        try:
            yield b": events of models\n\n"
            while True:
                yield event(await queue.get())
        finally:
            self._queues.discard(queue)


async def sse(request: Request) -> Response:
    """Events of models, until the client goes."""
    events: Events = request.app.state.model_events
    return Streamed(request, events.stream(), dialect="llama.cpp", on_error=event, ping=b": ping\n\n")


def _props(model: ServedModel, options: LoadOptions, settings: ServerSettings) -> dict[str, Any]:
    llm = model.llm.llm if model.is_loaded else None
    path = model.known.path if llm is None else llm.path
    facts = None if path is None else file_facts(path, options.get("chat_template"))
    recommended: dict[str, Any] = {} if facts is None else file_sampling(facts.metadata).values
    defaults = SamplingParams(**recommended | dict(options.get("sampling") or {}))
    n_ctx = options.get("n_ctx") or (min(facts.n_ctx_train, 4096) if facts is not None else 0)
    return {
        "default_generation_settings": {
            "params": generation_settings(defaults if llm is None else llm.default_params),
            "n_ctx": n_ctx if llm is None else llm.n_ctx,
        },
        "model_alias": model.name,
        "model_path": "" if path is None else str(path),
        "modalities": {"vision": False, "video": False, "audio": False},
        "total_slots": model.n_parallel,
        "endpoint_slots": settings.has_slots,
        "endpoint_props": False,
        "endpoint_metrics": settings.has_metrics,
        "build_info": build_info(),
        "is_sleeping": model.status == "sleeping",
        **_text_props(facts),
        **({} if llm is None else {"memory": _memory(llm)}),
    }


def _text_props(facts: FileFacts | None) -> dict[str, Any]:
    """The chat template, and what it takes."""
    if facts is None or facts.problem is not None:
        return {"chat_template": "", "chat_template_caps": {}, "bos_token": "", "eos_token": ""}
    takes_tools = "tools" in facts.capabilities
    return {
        "chat_template": facts.template,
        "chat_template_caps": {
            "supports_tools": takes_tools,
            "supports_tool_calls": takes_tools,
            "supports_parallel_tool_calls": takes_tools,
            "supports_system_role": True,
            "supports_preserve_reasoning": "thinking" in facts.capabilities,
        },
        "bos_token": facts.bos_token,
        "eos_token": facts.eos_token,
    }


def _memory(llm: LLM) -> dict[str, Any]:
    """Where a loaded model lies: bytes by tier, and a line for people."""
    tiers = {str(tier.tier): tier.used_bytes for tier in llm.plan.tiers if tier.used_bytes}
    parts = " and ".join(f"{size(n_bytes)} in {_TIERS[tier]}" for tier, n_bytes in tiers.items())
    return {
        "device": llm.device_name,
        "tiers": tiers,
        "summary": f"{llm.quantization} on {llm.device_name}: {parts}, context of {llm.n_ctx} tokens",
    }


def build_info() -> str:
    """The version, in llama.cpp's form."""
    from vkllm import __version__

    return f"b0-vkllm-{__version__}"


ROUTES = [
    Route("/props", props),
    Route("/slots", slots),
    Route("/slots/{slot}", no_slot_files, methods=["POST"]),
    Route("/cors-proxy", no_proxy, methods=["GET", "POST"]),
    Route("/lora-adapters", adapters, methods=["GET", "POST"]),
    Route("/models/load", load, methods=["POST"]),
    Route("/models/unload", unload, methods=["POST"]),
    Route("/models/sse", sse),
    Route("/models", fetch, methods=["POST"]),
    Route("/models", delete, methods=["DELETE"]),
]
