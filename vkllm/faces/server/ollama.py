"""ollama's API over HTTP: chats, texts and embeddings.

It knows paths and lines on the wire; what bodies and lines say is `api/ollama`'s. Models are ollama_models.py's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.async_stream import joining
from vkllm.api.ollama.answers import OllamaAnswer, nanoseconds
from vkllm.api.ollama.embeddings import EmbedRequest, embed_request, embeddings_request
from vkllm.api.ollama.options import Common
from vkllm.api.ollama.requests import OllamaRequest, chat_request, generate_request
from vkllm.faces.server.answers import Json, Streamed, answered, line
from vkllm.faces.server.bodies import body_of
from vkllm.faces.server.models import Models, ServedModel


async def chat(request: Request) -> Response:
    """Answers a conversation; without messages it loads or unloads the model."""
    return await _answer(request, chat_request(await body_of(request)), is_chat=True)


async def generate(request: Request) -> Response:
    """Answers or continues a prompt; without one it loads or unloads the model."""
    return await _answer(request, generate_request(await body_of(request)), is_chat=False)


async def embed(request: Request) -> Response:
    """The embeddings of texts."""
    asked = embed_request(await body_of(request))
    return Json(await answered(request, _embed(request.app.state.models, asked)))


async def embeddings(request: Request) -> Response:
    """The embedding of a text, in the form of ollama's older API."""
    asked = embeddings_request(await body_of(request))
    made = await answered(request, _embed(request.app.state.models, asked))
    return Json({"embedding": next(iter(made["embeddings"]), [])})


async def _answer(request: Request, asked: OllamaRequest, *, is_chat: bool) -> Response:
    models: Models = request.app.state.models
    if asked.asked is None:
        return Json(await answered(request, _load(models, asked, is_chat=is_chat)))
    if not asked.is_stream:
        return Json(await answered(request, _whole(models, asked, is_chat=is_chat)))
    return Streamed(
        request,
        _lines(models, asked, is_chat=is_chat),
        dialect="ollama",
        on_error=line,
        media_type="application/x-ndjson",
    )


async def _load(models: Models, asked: OllamaRequest, *, is_chat: bool) -> dict[str, Any]:
    """What a request without messages or prompt asks for."""
    name = asked.common.model
    if asked.common.keep_alive_s == 0:
        await models.unload(await models.find(name))
        return OllamaAnswer(name, is_chat).loaded("unload")
    async with _used(models, asked.common):
        return OllamaAnswer(name, is_chat).loaded("load")


async def _whole(models: Models, asked: OllamaRequest, *, is_chat: bool) -> dict[str, Any]:
    async with _used(models, asked.common) as (model, load_s):
        answer = _begun(asked, model, load_s, is_chat=is_chat)  # its time begins here
        return answer.whole(await asked.stream(model.llm).consume())


async def _lines(models: Models, asked: OllamaRequest, *, is_chat: bool) -> AsyncGenerator[bytes]:
    async with _used(models, asked.common) as (model, load_s), asked.stream(model.llm) as stream:
        answer = _begun(asked, model, load_s, is_chat=is_chat)
        joining([stream])
        async for piece in stream:
            if (said := answer.line(piece)) is not None:
                yield line(said)
        yield line(answer.last_line(await stream.result()))


def _begun(asked: OllamaRequest, model: ServedModel, load_s: float, *, is_chat: bool) -> OllamaAnswer:
    return OllamaAnswer(
        asked.common.model,
        is_chat,
        hides_thinking=asked.hides_thinking,
        load_s=load_s,
        tokenizer=model.llm.llm.tokenizer,
    )


async def _embed(models: Models, asked: EmbedRequest) -> dict[str, Any]:
    start_s = time.monotonic()
    async with _used(models, asked.common) as (model, load_s):
        vectors, n_tokens = await asked.run(model.llm)
    return {
        "model": asked.common.model,
        "embeddings": vectors,
        "total_duration": nanoseconds(time.monotonic() - start_s),
        "load_duration": nanoseconds(load_s),
        "prompt_eval_count": n_tokens,
    }


@asynccontextmanager
async def _used(models: Models, common: Common) -> AsyncIterator[tuple[ServedModel, float]]:
    """The loaded model, and the seconds that loading it took."""
    start_s = time.monotonic()
    async with models.use(common.model, n_ctx=common.n_ctx, keep_s=common.keep_alive_s) as model:
        yield model, time.monotonic() - start_s


ROUTES = [
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
    Route("/api/embed", embed, methods=["POST"]),
    Route("/api/embeddings", embeddings, methods=["POST"]),
]
