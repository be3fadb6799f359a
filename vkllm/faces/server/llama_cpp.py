"""llama.cpp's own endpoints for texts over HTTP: completion, infill, embedding, tokens and templates.

It knows paths and events on the wire; what bodies and answers say is `api/llama_cpp`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.answer import Piece
from vkllm.api.async_llm import opening
from vkllm.api.async_stream import AsyncStream, all_answers, joining, request_of, telling_progress
from vkllm.api.llama_cpp.answers import CompletionAnswer
from vkllm.api.llama_cpp.prompts import can_fill, infill_tokens, pieces_of, prompts_of, token_ids_of
from vkllm.api.llama_cpp.requests import CompletionRequest, completion_request
from vkllm.errors import InvalidParameter
from vkllm.faces.server.answers import Json, Streamed, answered, event
from vkllm.faces.server.bodies import body_of, ping_s, text_in, truth_in
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.merged import merged
from vkllm.faces.server.models import Models, ServedModel, check_answers

_PING = b": ping\n\n"
MakeRequest = Callable[[ServedModel], CompletionRequest]


async def completion(request: Request) -> Response:
    """Continues texts."""
    body = await body_of(request)
    asked = completion_request(body)
    check_answers(len(asked.prompts), asked.n)
    return await _respond(request, body, lambda model: asked)


async def infill(request: Request) -> Response:
    """Fills a gap in code."""
    body = await body_of(request)

    def asked(model: ServedModel) -> CompletionRequest:
        llm = model.llm.llm
        if not can_fill(llm.tokenizer):
            raise HttpError(
                400,
                f"{model.name} has no tokens that show it a gap; take a model of code that has them",
                kind="not_supported_error",
            )
        return completion_request(body, infill_tokens(body, llm.tokenizer, llm.n_ctx))

    return await _respond(request, body, asked)


async def embedding(request: Request) -> Response:
    """Embeddings in llama.cpp's own form."""
    body = await body_of(request)
    given = body.get("input", body.get("content"))
    if given is None:
        raise InvalidParameter("input is required: text, token ids, or a list of these")
    prompts, _ = prompts_of(given)

    async def run(model: ServedModel) -> Any:
        tokenizer = model.llm.llm.tokenizer
        vectors = await model.llm.embed([token_ids_of(prompt, tokenizer) for prompt in prompts])
        return [{"index": index, "embedding": [vector]} for index, vector in enumerate(vectors)]

    return await _with_model(request, body, run)


async def tokenize(request: Request) -> Response:
    """The token ids of a text."""
    body = await body_of(request)
    content = body.get("content", "")
    adds, parses = truth_in(body, "add_special"), truth_in(body, "parse_special", default=True)
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts):
        raise InvalidParameter("content must be a text, or a list of texts and token ids")

    async def run(model: ServedModel) -> Any:
        ids: list[int] = []
        for number, part in enumerate(parts):
            is_first = adds and number == 0
            ids += (
                await model.llm.tokenize(part, add_special=is_first, parse_special=parses)
                if isinstance(part, str)
                else [part]
            )
        return {"tokens": pieces_of(ids, model.llm.llm.tokenizer) if truth_in(body, "with_pieces") else ids}

    return await _with_model(request, body, run)


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    body = await body_of(request)
    tokens = body.get("tokens", [])
    if not isinstance(tokens, list):
        raise InvalidParameter("tokens must be a list of token ids")

    async def run(model: ServedModel) -> Any:
        return {"content": await model.llm.detokenize(tokens, skip_special=False)}

    return await _with_model(request, body, run)


async def apply_template(request: Request) -> Response:
    """The text that a conversation becomes."""
    body = await body_of(request)
    variables = body.get("chat_template_kwargs") or {}
    if not isinstance(variables, Mapping):
        raise InvalidParameter("chat_template_kwargs must be an object")
    adds = truth_in(body, "add_generation_prompt", default=True)
    variables = {**variables, "continues_last": truth_in(body, "continue_final_message")}

    async def run(model: ServedModel) -> Any:
        _, prompts = await opening(model.llm)()
        text = await asyncio.to_thread(
            prompts.chat_text, body.get("messages"), body.get("tools"), variables, add_generation_prompt=adds
        )
        return {"prompt": text}

    return await _with_model(request, body, run)


async def input_tokens(request: Request) -> Response:
    """How many tokens a conversation has as a prompt."""
    body = await body_of(request)

    async def run(model: ServedModel) -> Any:
        return {"input_tokens": await model.llm.count_tokens(body.get("messages") or [], tools=body.get("tools"))}

    return await _with_model(request, body, run)


async def _with_model(
    request: Request, body: dict[str, Any], run: Callable[[ServedModel], Coroutine[Any, Any, Any]]
) -> Response:
    models: Models = request.app.state.models

    async def answer() -> Any:
        async with models.use(text_in(body, "model")) as model:
            return await run(model)

    return Json(await answered(request, answer()))


async def _respond(request: Request, body: dict[str, Any], asked: MakeRequest) -> Response:
    models: Models = request.app.state.models
    name = text_in(body, "model")
    if truth_in(body, "stream"):
        chunks = _chunks(models, name, asked)
        return Streamed(request, chunks, dialect="llama.cpp", on_error=event, ping=_PING, ping_s=ping_s(body))
    return Json(await answered(request, _whole(models, name, asked)))


async def _whole(models: Models, name: str | None, make_request: MakeRequest) -> Any:
    async with models.use(name) as model:
        asked = await asyncio.to_thread(make_request, model)
        streams = await _streams(model, asked)
        generations = await all_answers(streams)
        made = [
            (await _begun(model, asked, index, streams[index])).whole(generation)
            for index, generation in enumerate(generations)
        ]
        return made if asked.has_several else made[0]


async def _chunks(models: Models, name: str | None, make_request: MakeRequest) -> AsyncGenerator[bytes]:
    async with models.use(name) as model:
        asked = await asyncio.to_thread(make_request, model)
        streams = await _streams(model, asked)
        answers: dict[int, CompletionAnswer] = {}
        start_s = time.monotonic()
        if asked.reports_progress:
            telling_progress(streams)
        tells_each = asked.times_tokens or bool(asked.options.get("logprobs"))  # clients read one token a chunk there
        joining(streams, joins=not tells_each)
        async for index, part in merged(streams):
            if index not in answers:
                answers[index] = replace(await _begun(model, asked, index, streams[index]), start_s=start_s)
            if isinstance(part, Piece):
                progress = part.progress
                yield event(answers[index].chunk(part) if progress is None else answers[index].progress(progress))
            else:
                yield event(answers[index].whole(part, is_last_chunk=True))


async def _streams(model: ServedModel, asked: CompletionRequest) -> list[AsyncStream]:
    llm = model.llm.llm
    return await asyncio.to_thread(asked.streams, model.llm, llm.tokenizer, llm.n_ctx)


async def _begun(model: ServedModel, asked: CompletionRequest, index: int, stream: AsyncStream) -> CompletionAnswer:
    llm = model.llm.llm
    return CompletionAnswer(asked, index, await request_of(stream), model.name, llm.tokenizer, llm.n_ctx)


ROUTES = [
    Route("/completion", completion, methods=["POST"]),
    Route("/completions", completion, methods=["POST"]),
    Route("/infill", infill, methods=["POST"]),
    Route("/embedding", embedding, methods=["POST"]),
    Route("/embeddings", embedding, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/apply-template", apply_template, methods=["POST"]),
    Route("/chat/completions/input_tokens", input_tokens, methods=["POST"]),
    Route("/v1/chat/completions/input_tokens", input_tokens, methods=["POST"]),
]
