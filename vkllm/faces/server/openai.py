"""OpenAI's endpoints for chats and texts, with what llama.cpp's server adds to them.

It knows HTTP and the order of events; parameters and shapes are `vkllm.api.openai`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.answer import Generation, Piece
from vkllm.api.async_llm import opening
from vkllm.api.async_stream import AsyncStream, all_answers
from vkllm.api.openai.calls import Call, ChatCall, TextCall
from vkllm.api.openai.options import ChatCompletionOptions, TextOptions, TransportOptions
from vkllm.api.prompts import Prompts
from vkllm.engine.events import RunStats
from vkllm.errors import InvalidParameter
from vkllm.faces.server.answers import Json, Streamed, answered, event
from vkllm.faces.server.bodies import body_of, text_in, truth_in
from vkllm.faces.server.merged import merged
from vkllm.faces.server.models import Models, ServedModel

_TRANSPORT = TransportOptions.__annotations__.keys()
_PING = b": ping\n\n"
_DONE = b"data: [DONE]\n\n"
MakeCall = Callable[[Prompts], Call[Any, Any]]


async def chat_completions(request: Request) -> Response:
    """Answers a conversation."""
    body = await body_of(request)
    is_stream = truth_in(body, "stream")
    options = known(body, ChatCompletionOptions)
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InvalidParameter("messages must be a list of messages")
    return await respond(
        request,
        body,
        lambda prompts: ChatCall(prompts, messages, options, is_stream=is_stream),  # type: ignore[arg-type]
    )


async def completions(request: Request) -> Response:
    """Continues a text."""
    body = await body_of(request)
    is_stream = truth_in(body, "stream")
    options = known(body, TextOptions)
    if body.get("prompt") is None:
        raise InvalidParameter("prompt must be a text, a list of token ids, or a list of these")
    return await respond(
        request,
        body,
        lambda prompts: TextCall(prompts, body["prompt"], options, is_stream=is_stream),  # type: ignore[arg-type]
    )


def known(body: Mapping[str, Any], options: type[Any]) -> dict[str, Any]:
    """The parameters that are known; clients send many others, which mean nothing here."""
    names = options.__annotations__.keys() - _TRANSPORT
    return {name: value for name, value in body.items() if name in names and value is not None}


async def respond(request: Request, body: Mapping[str, Any], make_call: MakeCall) -> Response:
    """The answer to a call, whole or as a stream."""
    models: Models = request.app.state.models
    name = text_in(body, "model")
    if truth_in(body, "stream"):
        pieces = chunks(models, name, make_call)
        return Streamed(request, pieces, dialect="openai", on_error=event, ping=_PING)
    return Json(await answered(request, whole(models, name, make_call)))


async def whole(models: Models, name: str | None, make_call: MakeCall) -> dict[str, Any]:
    """The answer as one object."""
    async with models.use(name) as model:
        call, streams = await sent_call(model, make_call)
        generations = await all_answers(streams)
        made = as_sent(call.whole(generations), model)
        made["timings"] = timings_of(generations[0].stats)
        return made


async def chunks(models: Models, name: str | None, make_call: MakeCall) -> AsyncGenerator[bytes]:
    """The answer as server-sent events."""
    async with models.use(name) as model:
        call, streams = await sent_call(model, make_call)
        generations: dict[int, Generation] = {}
        has_begun: set[int] = set()
        async for index, piece in merged(streams):
            sent = b""
            if index not in has_begun and (first := call.first_chunk(index)) is not None:
                sent = event(as_sent(first, model))
            has_begun.add(index)
            if isinstance(piece, Piece):
                yield sent + event(as_sent(call.chunk(index, piece), model))
                continue
            generations[index] = piece
            last = as_sent(call.last_chunk(index, piece), model)
            if not call.includes_usage and len(generations) == len(streams):
                last["timings"] = timings_of(piece.stats)
            yield sent + event(last)
        if call.includes_usage:
            in_order = [generations[index] for index in range(len(streams))]
            usage = as_sent(call.usage_chunk(in_order), model)
            usage["timings"] = timings_of(in_order[0].stats)
            yield event(usage)
        yield _DONE


async def sent_call(model: ServedModel, make_call: MakeCall) -> tuple[Call[Any, Any], list[AsyncStream]]:
    """A call, and a stream for each of its answers. Raises InvalidParameter, ContextOverflow."""
    opened = opening(model.llm)
    _, prompts = await opened()
    call = await asyncio.to_thread(make_call, prompts)
    return call, [AsyncStream(opened, partial(_given, answer)) for answer in call.answers]


def _given(answer: Any, prompts: Prompts) -> Any:
    return answer


def as_sent(shape: Any, model: ServedModel) -> dict[str, Any]:
    """An object as a dictionary: the model by the name it is served under, deltas without what they do not change."""
    made: dict[str, Any] = shape.model_dump()
    made["model"] = model.name
    if made.get("usage", ...) is None:
        del made["usage"]
    for choice in made["choices"]:
        for part in ("delta", "message"):
            if part in choice:
                is_kept = {"content"} if part == "message" or choice[part].get("role") else set()
                choice[part] = {
                    name: value for name, value in choice[part].items() if value is not None or name in is_kept
                }
    return made


def timings_of(stats: RunStats) -> dict[str, Any]:
    """Counts and speeds in the form of llama.cpp's server."""
    n_prompt, n_generated = stats.n_prompt - stats.n_cached, stats.n_generated
    return {
        "cache_n": stats.n_cached,
        "prompt_n": n_prompt,
        "prompt_ms": stats.prompt_s * 1000,
        "prompt_per_token_ms": stats.prompt_s * 1000 / max(n_prompt, 1),
        "prompt_per_second": stats.prompt_per_s,
        "predicted_n": n_generated,
        "predicted_ms": stats.generate_s * 1000,
        "predicted_per_token_ms": stats.generate_s * 1000 / max(n_generated - 1, 1),
        "predicted_per_second": stats.generate_per_s,
    }


ROUTES = [
    Route(prefix + path, endpoint, methods=["POST"])
    for prefix in ("/v1", "")
    for path, endpoint in (("/chat/completions", chat_completions), ("/completions", completions))
    if not (prefix == "" and path == "/completions")  # llama.cpp's own there
]
