"""`/v1/responses` of OpenAI, without what would have to be kept between requests.

It knows HTTP and the order of events; what they hold is `vkllm.api.openai`'s.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.async_llm import opening
from vkllm.api.async_stream import AsyncStream, joining, request_of, telling_progress
from vkllm.api.llama_cpp.answers import RunningTimes, progress_fields, timings
from vkllm.api.openai.response_objects import ResponseAnswer
from vkllm.api.openai.response_requests import ResponseRequest, response_request
from vkllm.faces.server.answers import Json, Streamed, answered, event, events
from vkllm.faces.server.bodies import body_of, ping_s, text_in, truth_in
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.models import Models

_PING = b": ping\n\n"


async def responses(request: Request) -> Response:
    """Answers a conversation."""
    body = await body_of(request)
    models: Models = request.app.state.models
    asked, name = response_request(body), text_in(body, "model")
    tells, times = truth_in(body, "return_progress"), truth_in(body, "timings_per_token")
    if truth_in(body, "stream"):
        pieces = _events(models, name, asked, tells_progress=tells, tells_times=times)
        return Streamed(
            request, pieces, dialect="openai", on_error=_failed, ping=_PING, ping_s=ping_s(body), has_head=True
        )
    return Json(await answered(request, _whole(models, name, asked)))


async def input_tokens(request: Request) -> Response:
    """How many tokens a conversation has as a prompt."""
    body = await body_of(request)
    models: Models = request.app.state.models
    return Json(await answered(request, _count(models, text_in(body, "model"), response_request(body))))


async def nothing_kept(request: Request) -> Response:
    """No response can be read, continued or deleted later."""
    raise HttpError(404, "this server keeps no responses", code="response_not_found")


async def _count(models: Models, name: str | None, asked: ResponseRequest) -> dict[str, Any]:
    async with models.use(name) as model:
        tools, variables = asked.tools or None, asked.variables
        n_tokens = await model.llm.count_tokens(asked.messages, tools=tools, variables=variables)
        return {"object": "response.input_tokens", "input_tokens": n_tokens}


async def _whole(models: Models, name: str | None, asked: ResponseRequest) -> dict[str, Any]:
    async with models.use(name) as model:
        made = ResponseAnswer(asked, model.name, model.llm.llm.tokenizer)
        async with AsyncStream(opening(model.llm), asked.answer) as stream:
            async for piece in stream:
                made.push(piece)
            generation = await stream.result()
        made.finish(generation)
        return made.whole(generation) | {"timings": timings(generation.stats)}


async def _events(
    models: Models, name: str | None, asked: ResponseRequest, *, tells_progress: bool, tells_times: bool
) -> AsyncGenerator[bytes]:
    async with models.use(name) as model:
        made = ResponseAnswer(asked, model.name, model.llm.llm.tokenizer)
        stream = AsyncStream(opening(model.llm), asked.answer)
        if tells_progress:
            telling_progress([stream])
        joining([stream], joins=not tells_times)
        start_s = time.monotonic()
        async with stream:
            times = RunningTimes(len((await request_of(stream)).prompt_token_ids), start_s)
            yield events(made.begin())  # before the prompt is read: clients give up where no event comes for long
            async for piece in stream:
                added = made.push(piece)
                if tells_times:
                    told = {"timings": times.after(piece)}
                    added = [each | told if each["type"] == "response.output_text.delta" else each for each in added]
                if piece.progress is not None:
                    added.append(made.progress(progress_fields(piece.progress)))
                yield events(added)
            generation = await stream.result()
            end = made.finish(generation)
            end[-1]["timings"] = timings(generation.stats)
            yield events(end)


def _failed(body: Mapping[str, Any]) -> bytes:
    """An error in the middle of a stream, as OpenAI's has it."""
    told = {name: body["error"][name] for name in ("code", "message", "param")}
    return event({"type": "error", **told}, "error")


ROUTES = [
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/responses", responses, methods=["POST"]),
    Route("/v1/responses/input_tokens", input_tokens, methods=["POST"]),
    Route("/responses/input_tokens", input_tokens, methods=["POST"]),
    Route("/v1/responses/{id}", nothing_kept, methods=["GET", "DELETE"]),
]
