"""Requests of OpenAI's Responses API: items of a conversation become messages, tools and options.

It knows the fields of requests; what answers look like is response_objects.py's. Nothing is kept between requests, so
what refers to an earlier one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vkllm.api.answer import AnswerText
from vkllm.api.openai.options import (
    ChatCompletionOptions,
    chat_logprobs_option,
    choice_of_tools,
    given_options,
    sampling_options,
    schema_of,
    template_variables,
)
from vkllm.api.prompts import Prompts
from vkllm.errors import InvalidParameter
from vkllm.text.answers.tool_choice import ToolChoice
from vkllm.text.messages import content_text

_STATELESS = "this server keeps nothing between requests; send the whole conversation as input"
_REFUSED = {"previous_response_id": _STATELESS, "conversation": _STATELESS, "prompt": _STATELESS}
_SAME = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "logit_bias", "frequency_penalty",
         "presence_penalty", "repeat_penalty", "chat_template_kwargs", "enable_thinking", "tool_choice",
         "parallel_tool_calls", "grammar", "regex", "json_schema")  # fmt: skip
_ROLES = ("user", "assistant", "system", "developer")


@dataclass(frozen=True)
class ResponseRequest:
    """A request, translated. body: as it came. tools: those that are functions, in the form of chats."""

    body: Mapping[str, Any]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    sampling: dict[str, Any]
    variables: dict[str, Any]
    choice: ToolChoice

    def answer(self, prompts: Prompts) -> AnswerText:
        """The request to the engine, in an answer that is still empty. Errors as of `Prompts.of_chat`."""
        sampling: Any = self.sampling
        return prompts.of_chat(self.messages, None, sampling, self.tools or None, self.variables, self.choice)


def response_request(body: Mapping[str, Any]) -> ResponseRequest:
    """Translates a request. Raises InvalidParameter."""
    for name, why in _REFUSED.items():
        if body.get(name) is not None:
            raise InvalidParameter(f"{name} is not in vkllm: {why}")
    if body.get("background"):
        raise InvalidParameter("background is not in vkllm: answers come at once; leave it out")
    given: dict[str, Any] = {name: body[name] for name in _SAME if body.get(name) is not None}
    if body.get("max_output_tokens") is not None:
        given["max_tokens"] = body["max_output_tokens"]
    if (effort := _object(body, "reasoning").get("effort")) is not None:
        given["reasoning_effort"] = effort
    form = _object(body, "text").get("format")
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": form}
    if form is not None:
        given["response_format"] = form
    if (most := body.get("top_logprobs")) or "message.output_text.logprobs" in _listed(body, "include"):
        given |= {"logprobs": True, "top_logprobs": most or 0}
    options: Any = given
    given = given_options(options, ChatCompletionOptions)
    sampling = sampling_options(given) | {"logprobs": chat_logprobs_option(given)}
    if (schema := schema_of(given.get("response_format"))) is not None:
        sampling["json_schema"] = schema
    if body.get("truncation") == "auto":
        sampling["context_shift"] = True
    tools = _functions(body.get("tools"))
    choice = choice_of_tools(given) if tools else ToolChoice()
    return ResponseRequest(body, _messages(body), tools, sampling, template_variables(given), choice)


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidParameter(f"{name} must be an object, not {value!r:.60}")
    return value


def _listed(holder: Mapping[str, Any], name: str, where: str = "") -> list[Any]:
    """A list that may be missing. where: whose it is, for the sentence."""
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidParameter(f"{where}{name} must be a list, not {value!r:.60}")
    return value


def _functions(tools: Any) -> list[dict[str, Any]]:
    """The tools that are functions; others run on OpenAI's servers or in clients, and models here do not know them."""
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InvalidParameter("tools must be a list of objects")
    functions = []
    for tool in tools:
        if tool.get("type") == "function":
            function = tool.get("function") or {
                name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None
            }
            functions.append({"type": "function", "function": function})
    return functions


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if (instructions := body.get("instructions")) is not None:
        messages.append({"role": "system", "content": content_text(instructions, "instructions", between="")})
    items = body.get("input")
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise InvalidParameter("input must be a text or a list of items, with at least one")
    for place, item in enumerate(items):
        where = f"item {place} of input"
        if not isinstance(item, Mapping):
            raise InvalidParameter(f"{where} must be an object, not {item!r:.60}")
        _take(messages, item, where)
    return messages


def _take(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    """Adds an item. Reasoning, text and calls of one turn of the assistant become one message."""
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if role not in _ROLES:
                raise InvalidParameter(f"{where}: role must be one of {', '.join(_ROLES)}, not {role!r:.60}")
            text = content_text(item.get("content"), where, between="")
            if role == "assistant":
                turn = _turn(messages)
                turn["content"] = turn["content"] + text
            else:
                messages.append({"role": role, "content": text})
        case "reasoning":
            parts = [*_listed(item, "content", f"{where}: "), *_listed(item, "summary", f"{where}: ")]
            if text := content_text(parts, where, between=""):
                _turn(messages, is_new=True)["reasoning_content"] = text
        case "function_call" | "custom_tool_call" as kind:
            arguments = item.get("arguments") if kind == "function_call" else {"input": item.get("input")}
            function = {"name": item.get("name"), "arguments": arguments or "{}"}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            _turn(messages).setdefault("tool_calls", []).append(call)
        case "function_call_output" | "custom_tool_call_output":
            text = content_text(item.get("output"), where, between="")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        case "item_reference":
            raise InvalidParameter(f"{where} refers to an earlier request: {_STATELESS}")
        case _:  # what OpenAI's own tools did, which no model here knows
            return


def _turn(messages: list[dict[str, Any]], *, is_new: bool = False) -> dict[str, Any]:
    """The message of the assistant that the last items belong to."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or (is_new and (last["content"] or last.get("tool_calls"))):
        messages.append(last := {"role": "assistant", "content": ""})
    return last
