"""Requests in the shape of ollama's API: bodies of /api/chat and /api/generate become chats or prompts.

It knows their fields, as the ollama package 0.6 has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vkllm.api.answer import SamplingOptions
from vkllm.api.async_llm import AsyncLLM
from vkllm.api.async_stream import AsyncStream
from vkllm.api.chat_request import ChatRequest, body_of, text_field
from vkllm.api.ollama.options import Common, is_stream, refuse_images, sampling_options, think_variables
from vkllm.errors import InvalidParameter
from vkllm.parameters import truth
from vkllm.text.messages import plain_value

_N_CONTEXTS = 10


@dataclass(frozen=True)
class TextRequest:
    """A prompt to continue as it is."""

    prompt: str
    options: SamplingOptions

    def stream(self, llm: AsyncLLM, *, origin: str = "") -> AsyncStream:
        """Its continuation by a model."""
        options: SamplingOptions = {**self.options, "origin": origin}
        return llm.stream(self.prompt, **options)


@dataclass(frozen=True)
class OllamaRequest:
    """A request for an answer. asked: None to load the model, or with keep_alive 0 to unload it. hides_thinking: the
    answer has none even if the model thinks."""

    common: Common
    asked: ChatRequest | TextRequest | None
    is_stream: bool
    hides_thinking: bool

    def stream(self, llm: AsyncLLM, *, origin: str = "") -> AsyncStream:
        """Its answer by a loaded model. Without a limit of its own it has at most ten contexts, as in ollama."""
        assert self.asked is not None
        limit: SamplingOptions = {"max_tokens": _N_CONTEXTS * llm.llm.n_ctx}
        return replace(self.asked, options=SamplingOptions({**limit, **self.asked.options})).stream(llm, origin=origin)


def chat_request(value: Any) -> OllamaRequest:
    """The body of POST /api/chat. Raises InvalidParameter."""
    body = body_of(value)
    messages, tools = body.get("messages") or [], body.get("tools") or None
    if not isinstance(messages, list):
        raise InvalidParameter(f"messages must be a list, not of type {type(messages).__name__}")
    if not isinstance(tools, list | None):
        raise InvalidParameter(f"tools must be a list, not of type {type(tools).__name__}")
    asked = None
    if messages:
        made = _messages(messages)
        variables = think_variables(body.get("think"))
        if len(made) > 1 and made[-1].get("role") == "assistant" and not made[-1].get("tool_calls"):
            variables["continues_last"] = True
        asked = ChatRequest(made, sampling_options(body), tools, variables=variables)
    return _request(body, asked)


def generate_request(value: Any) -> OllamaRequest:
    """The body of POST /api/generate. Raises InvalidParameter."""
    body = body_of(value)
    refuse_images(body, "the prompt")
    for name, advice in (
        ("suffix", "text is continued at its end only; leave it out, or use /infill of llama.cpp's API"),
        ("template", "the model's own template is used; leave it out, or give raw text with raw=true"),
        ("context", "earlier turns are messages of /api/chat; leave it out"),
    ):
        if body.get(name):
            raise InvalidParameter(f"{name} is not in vkllm: {advice}")
    prompt, system = text_field(body, "prompt"), text_field(body, "system")
    asked: ChatRequest | TextRequest | None = None
    if prompt and truth("raw", body.get("raw") or False):
        asked = TextRequest(prompt, sampling_options(body))
    elif prompt:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        asked = ChatRequest(messages, sampling_options(body), variables=think_variables(body.get("think")))
    return _request(body, asked)


def _request(body: Mapping[str, Any], asked: ChatRequest | TextRequest | None) -> OllamaRequest:
    return OllamaRequest(Common.of(body), asked, is_stream(body), body.get("think") is False)


def _messages(messages: list[Any]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form: calls have ids, and results name the calls that they belong to."""
    made: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []  # calls whose results have not come
    for number, given in enumerate(messages):
        where = f"message {number}"
        message = plain_value(given, where)
        if not isinstance(message, dict):
            raise InvalidParameter(f"{where} must be an object with role and content")
        refuse_images(message, where)
        if calls := message.get("tool_calls"):
            waiting = [_call(call, f"call_{number}_{place}", where) for place, call in enumerate(_listed(calls, where))]
            message["tool_calls"] = list(waiting)
        if message.get("role") == "tool":
            name = message.pop("tool_name", None) or message.get("name")
            answered = next((call for call in waiting if name in (None, call["function"]["name"])), None)
            if answered is not None:
                waiting.remove(answered)
                message.setdefault("tool_call_id", answered["id"])
                name = name or answered["function"]["name"]
            if name:
                message["name"] = name
        if "content" not in message:
            message["content"] = ""
        made.append(message)
    return made


def _listed(calls: Any, where: str) -> list[Any]:
    if not isinstance(calls, list):
        raise InvalidParameter(f"{where} has tool_calls of type {type(calls).__name__}; pass a list of calls")
    return calls


def _call(call: Any, call_id: str, where: str) -> dict[str, Any]:
    match call:
        case {"function": {"name": str(name)} as function}:
            arguments = function.get("arguments") or {}
            given_id = call.get("id") or call_id
            return {"id": given_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    raise InvalidParameter(f"{where} has a call without the name of a function")
