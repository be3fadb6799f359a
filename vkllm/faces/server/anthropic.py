"""Anthropic's Messages API over HTTP: /v1/messages and /v1/messages/count_tokens.

It knows paths and events on the wire; what bodies and events say is `api/anthropic`'s.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.anthropic.answers import PING, Event, MessageAnswer
from vkllm.api.anthropic.requests import is_stream, message_request
from vkllm.api.async_stream import joining, request_of
from vkllm.api.chat_request import ChatRequest
from vkllm.faces.server.answers import Json, Streamed, answered, event, events
from vkllm.faces.server.bodies import body_of, text_in
from vkllm.faces.server.models import Models


async def messages(request: Request) -> Response:
    """Answers a conversation."""
    body = await body_of(request)
    models: Models = request.app.state.models
    asked, name = message_request(body), text_in(body, "model")
    if not is_stream(body):
        return Json(await answered(request, _message(models, name, asked)))
    return Streamed(
        request,
        _events(models, name, asked),
        dialect="anthropic",
        on_error=_error_event,
        ping=events([PING]),
        has_head=True,
    )


async def count_tokens(request: Request) -> Response:
    """Counts the tokens of a conversation."""
    body = await body_of(request)
    models: Models = request.app.state.models
    return Json(await answered(request, _count(models, text_in(body, "model"), message_request(body))))


async def _message(models: Models, name: str | None, asked: ChatRequest) -> Event:
    async with models.use(name) as model:
        generation = await asked.stream(model.llm).consume()
        return MessageAnswer(model.name, asked.options.get("max_tokens")).whole(generation)


async def _events(models: Models, name: str | None, asked: ChatRequest) -> AsyncGenerator[bytes]:
    async with models.use(name) as model, asked.stream(model.llm) as stream:
        answer = MessageAnswer(model.name, asked.options.get("max_tokens"))
        yield events(answer.begin(len((await request_of(stream)).prompt_token_ids)))
        joining([stream])
        async for piece in stream:
            if told := answer.push(piece):
                yield events(told)
        yield events(answer.end(await stream.result()))


async def _count(models: Models, name: str | None, asked: ChatRequest) -> Event:
    async with models.use(name) as model:
        return {"input_tokens": await asked.n_tokens(model.llm)}


def _error_event(body: Mapping[str, Any]) -> bytes:
    return event(body, "error")


ROUTES = [
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]
