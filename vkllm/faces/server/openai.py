"""OpenAI's endpoints for chats and texts, with what llama.cpp's server adds to them.

It knows HTTP and the order of events; parameters and shapes are `vkllm.api.openai`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.answer import AnswerText, Generation, Piece
from vkllm.api.async_llm import opening
from vkllm.api.async_stream import AsyncStream, all_answers, joining, telling_progress
from vkllm.api.llama_cpp.answers import RunningTimes, progress_fields, timings
from vkllm.api.llama_cpp.fields import openai_fields, thinking_variables, thinks_in_content
from vkllm.api.llama_cpp.requests import biases
from vkllm.api.openai.calls import Call, ChatCall, TextCall
from vkllm.api.openai.options import ChatCompletionOptions, TextOptions, TransportOptions, n_choices
from vkllm.api.prompts import Prompts, as_batch
from vkllm.errors import InvalidParameter
from vkllm.faces.server.answers import Json, Streamed, answered, event
from vkllm.faces.server.bodies import body_of, ping_s, text_in, truth_in
from vkllm.faces.server.merged import merged
from vkllm.faces.server.models import Models, ServedModel, check_answers
from vkllm.faces.server.openai_objects import TextChunks, as_sent, prompt_of
from vkllm.faces.thoughts import KeptText, kept_text

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
MakeCall = Callable[[Prompts], Call[Any, Any]]
_TRANSPORT = TransportOptions.__annotations__.keys()
_IGNORED = ("store", "moderation", "web_search_options", "audio")
"""What asks for something that this server does not do, and clients send to every server."""


async def chat_completions(request: Request) -> Response:
    """Answers a conversation."""
    body = await body_of(request)
    is_stream = truth_in(body, "stream")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InvalidParameter("messages must be a list of messages")
    options: Any = known(openai_fields(body, is_chat=True), ChatCompletionOptions)
    continues = _continues(body, messages, prefills=request.app.state.settings.prefills)
    if not (continues or truth_in(body, "add_generation_prompt", default=True)):
        raise InvalidParameter("add_generation_prompt must be true, unless the answer continues the last message")
    if body.get("tools") and not truth_in(body, "parse_tool_calls", default=True):
        raise InvalidParameter("parse_tool_calls must be true: calls of tools are always taken out of the text")
    options |= {"continue_final_message": continues}
    options = thinking_variables(body) | options
    in_content = thinks_in_content(body, is_stream=is_stream)

    def make_call(prompts: Prompts) -> ChatCall:
        return ChatCall(prompts, messages, _with_biases(options, prompts), is_stream=is_stream)

    return await _respond(request, body, make_call, in_content=in_content)


async def completions(request: Request) -> Response:
    """Continues a text."""
    body = await body_of(request)
    is_stream = truth_in(body, "stream")
    prompt = body.get("prompt")
    if prompt is None or prompt == []:
        raise InvalidParameter("prompt must be a text, a list of token ids, or a list of these")
    options: Any = known(openai_fields(body, is_chat=False), TextOptions)
    check_answers(len(as_batch(prompt)[0]), n_choices(options))

    def make_call(prompts: Prompts) -> TextCall:
        return TextCall(prompts, prompt, _with_biases(options, prompts), is_stream=is_stream)

    return await _respond(request, body, make_call)


def _with_biases(options: Any, prompts: Prompts) -> Any:
    """The options; biases that are pairs, as llama.cpp has them, become those of tokens."""
    bias = options.get("logit_bias")
    return options | {"logit_bias": biases(bias, prompts.tokenizer)} if isinstance(bias, list) else options


def known(body: Mapping[str, Any], options: type[Any]) -> dict[str, Any]:
    """The parameters that are known; clients send many others, which mean nothing here."""
    names = options.__annotations__.keys() - _TRANSPORT - set(_IGNORED)
    given = {name: value for name, value in body.items() if name in names and value is not None}
    if "max_completion_tokens" in given:
        given.pop("max_tokens", None)
    if given.get("suffix") == "":
        del given["suffix"]
    if not truth_in(body, "stream"):
        given.pop("stream_options", None)
    return given


def _continues(body: Mapping[str, Any], messages: list[Any], *, prefills: bool) -> bool:
    """Whether the answer goes on where the last message ends. Raises InvalidParameter."""
    wanted = body.get("continue_final_message")
    if wanted is not None:
        if truth_in(body, "continue_final_message") and truth_in(body, "add_generation_prompt"):
            raise InvalidParameter("continue_final_message and add_generation_prompt contradict each other; give one")
        return truth_in(body, "continue_final_message")
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages[-2:]]
    if not prefills or roles[-1:] != ["assistant"] or messages[-1].get("tool_calls") or len(messages) < 2:
        return False
    if roles == ["assistant", "assistant"]:
        raise InvalidParameter("messages cannot end with two messages of the assistant; join them into one")
    return True


async def _respond(
    request: Request, body: Mapping[str, Any], make_call: MakeCall, *, in_content: bool = False
) -> Response:
    """The answer to a call, whole or as a stream."""
    models: Models = request.app.state.models
    body = {"verbose": request.app.state.settings.is_verbose, **body}
    if truth_in(body, "stream"):
        chunks = _chunks(models, body, make_call, in_content=in_content)
        return Streamed(request, chunks, dialect="openai", on_error=event, ping=PING, ping_s=ping_s(body))
    return Json(await answered(request, _whole(models, body, make_call, in_content=in_content)))


async def _whole(models: Models, body: Mapping[str, Any], make_call: MakeCall, *, in_content: bool) -> dict[str, Any]:
    """The answer as one object."""
    async with models.use(text_in(body, "model")) as model:
        call, streams = await sent_call(model, make_call)
        generations = await all_answers(streams)
        if in_content:
            generations = [replace(each, text=kept_text(each), reasoning="") for each in generations]
        made = as_sent(call.whole(generations), model)
        made["timings"] = timings(generations[0].stats)
        if truth_in(body, "verbose"):
            made["__verbose"] = {"prompt": prompt_of(generations[0], model)}
        return made


async def _chunks(
    models: Models, body: Mapping[str, Any], make_call: MakeCall, *, in_content: bool
) -> AsyncGenerator[bytes]:
    """The answer as server-sent events."""
    tells_progress, tells_times = truth_in(body, "return_progress"), truth_in(body, "timings_per_token")
    async with models.use(text_in(body, "model")) as model:
        call, streams = await sent_call(model, make_call)
        if tells_progress:
            telling_progress(streams)
        joining(streams, joins=not tells_times)
        generations: dict[int, Generation] = {}
        has_begun: set[int] = set()
        texts = TextChunks()
        start_s = time.monotonic()
        times = [RunningTimes(len(answer.request.prompt_token_ids), start_s) for answer in call.answers]
        kept = [KeptText() for _ in call.answers] if in_content else []
        async for index, piece in merged(streams):
            begin: dict[str, Any] = {}
            if index not in has_begun:
                has_begun.add(index)
                if (first := call.first_chunk(index)) is not None:
                    begin = texts.like(as_sent(first, model), index)
            if isinstance(piece, Piece) and piece.progress is not None:
                begin = begin or as_sent(call.chunk(index, piece), model)
                yield event(begin | progress_fields(piece.progress))
                continue
            sent = event(begin) if begin else b""
            if isinstance(piece, Piece):
                if kept:
                    joined = kept[index].add(piece.reasoning, piece)
                    piece = Piece(joined, piece.token_ids, piece.logprobs, "", piece.tool_calls)
                if tells_times:
                    yield sent + event(
                        as_sent(call.chunk(index, piece), model) | {"timings": times[index].after(piece)}
                    )
                    continue
                text = texts.event(index, piece)
                yield sent + (text or event(as_sent(call.chunk(index, piece), model)))
                continue
            generations[index] = piece
            last = as_sent(call.last_chunk(index, piece), model)
            if tells_times or (not call.includes_usage and len(generations) == len(streams)):
                last["timings"] = timings(piece.stats)
            if truth_in(body, "verbose"):
                last["__verbose"] = {"prompt": prompt_of(piece, model)}
            yield sent + event(last)
        if call.includes_usage:
            in_order = [generations[index] for index in range(len(streams))]
            usage = as_sent(call.usage_chunk(in_order), model)
            usage["timings"] = timings(in_order[0].stats)
            yield event(usage)
        yield DONE


async def sent_call(model: ServedModel, make_call: MakeCall) -> tuple[Call[Any, Any], list[AsyncStream]]:
    """A call, and a stream for each of its answers. Raises InvalidParameter, ContextOverflow."""
    opened = opening(model.llm)
    _, prompts = await opened()
    call = await asyncio.to_thread(make_call, prompts)
    return call, [AsyncStream(opened, partial(_given, answer)) for answer in call.answers]


def _given(answer: AnswerText, prompts: Prompts) -> AnswerText:
    return answer


ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
]
