"""Requests in the shape of Anthropic's Messages API: a body becomes a chat.

It knows their fields, as the anthropic package 2.14 has them; fields that mean nothing here, such as metadata, are
ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from vkllm.api.answer import SamplingOptions
from vkllm.api.chat_request import ChatRequest, body_of
from vkllm.errors import InvalidParameter
from vkllm.parameters import truth

_HEADER = re.compile(r"x-anthropic-billing-header:(?:[ \t]*[\w.-]+=[^;\n]*;)*[ \t]*\n*")
"""What Claude Code puts before its system message. It differs from request to request, so no prompt would begin like
the one before it; it says nothing to a model."""

_NO_TEXT = ("redacted_thinking", "server_tool_use", "container_upload")
"""Blocks of history that a model cannot read; results of tools that ran elsewhere end in _tool_result."""

_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def message_request(value: Any) -> ChatRequest:
    """The body of POST /v1/messages as a chat. Raises InvalidParameter that names the message or the field."""
    body = body_of(value)
    messages = [*_system(body.get("system")), *_messages(body.get("messages"))]
    variables = _variables(body)
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        variables["continues_last"] = True
    return ChatRequest(messages, _options(body), _tools(body), body.get("tool_choice"), variables)


def is_stream(value: Any) -> bool:
    """Whether a body asks for events. Raises InvalidParameter."""
    return truth("stream", body_of(value).get("stream") or False)


def _system(system: Any) -> list[dict[str, Any]]:
    if system is None:
        return []
    texts = [system] if isinstance(system, str) else [text for _, text in _texts(system, "system")]
    text = "\n".join(filter(None, (_HEADER.sub("", text, count=1) if _HEADER.match(text) else text for text in texts)))
    return [{"role": "system", "content": text}] if text else []


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise InvalidParameter("messages must be a list of at least one message with role and content")
    made: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            raise InvalidParameter(f"{where} must be an object with role and content")
        match message.get("role"):
            case "user":
                new = _of_user(message.get("content"), where)
            case "assistant":
                new = [_of_assistant(message.get("content"), where)]
            case "system":
                new = _system(message.get("content"))
            case role:
                raise InvalidParameter(f'{where} has the role {role!r}; roles are "user", "assistant" and "system"')
        for each in new:
            _append(made, each)
    if not made:
        raise InvalidParameter("messages have no text; give at least one message that says something")
    return made


def _append(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Adds a message; neighbours of the same role are one turn, as in Anthropic's API."""
    last = messages[-1] if messages else {"role": ""}
    if last["role"] == message["role"] and message["role"] in ("user", "assistant") and not last.get("tool_calls"):
        joined = "\n".join(filter(None, (last["content"], message["content"])))
        messages[-1] = {**last, **message, "content": joined}
    else:
        messages.append(message)


def _of_user(content: Any, where: str) -> list[dict[str, Any]]:
    """Results of tools first: templates want them right behind the calls."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results, texts = [], []
    for block, text in _texts(content, where):
        if block["type"] == "tool_result":
            results.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id") or ""), "content": text})
        else:
            texts.append(text)
    said = [{"role": "user", "content": "\n".join(texts)}] if texts or not results else []
    return [*results, *said]


def _of_assistant(content: Any, where: str) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts, thoughts, calls = [], [], []
    for block, text in _texts(content, where):
        match block["type"]:
            case "thinking":
                thoughts.append(text)
            case "tool_use":
                calls.append(_call(block, where))
            case _:
                texts.append(text)
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, given = block.get("name"), block.get("input") or {}
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise InvalidParameter(f"{where} has a block of type 'tool_use' without a name, or whose input is no object")
    arguments = json.dumps(given, ensure_ascii=False)
    call_id = str(block.get("id") or "")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _texts(content: Any, where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Blocks with what they say; those that say nothing to a model are left out."""
    if not isinstance(content, list):
        raise InvalidParameter(f"{where} must have text or a list of blocks as content")
    for block in content:
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise InvalidParameter(f'{where} has a block without a type; give it one, such as "text"')
        kind = block["type"]
        if kind == "tool_result" or not (kind in _NO_TEXT or kind.endswith("_tool_result")):
            yield block, _text_of(block, kind, where)


def _text_of(block: Mapping[str, Any], kind: str, where: str) -> str:
    match kind, block:
        case "tool_use", _:
            return ""
        case ("text", {"text": str(text)}) | ("thinking", {"thinking": str(text)}):
            return text
        case "tool_result", _:
            content = block.get("content")
            if content is None or isinstance(content, str):
                return content or ""
            return "\n".join(text for _, text in _texts(content, f"the tool result in {where}"))
        case "document", {"source": {"type": "text", "data": str(text)}}:
            return "\n".join(filter(None, (str(block.get("title") or ""), text)))
        case "document", {"source": {"type": "content", "content": list(parts)}}:
            return "\n".join(text for _, text in _texts(parts, where))
        case "search_result", {"content": list(parts)}:
            heads = [str(block.get(name) or "") for name in ("title", "source")]
            return "\n".join(filter(None, (*heads, *(text for _, text in _texts(parts, where)))))
        case (("text" | "thinking" | "search_result"), _):
            raise InvalidParameter(f"{where} has a block of type {kind!r} that holds no text")
    raise InvalidParameter(f"{where} has a block of type {kind!r}; vkllm reads text only, so leave it out")


def _tools(body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The functions among the tools; those that Anthropic's servers or models know themselves are left out."""
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise InvalidParameter(f"tools must be a list, not of type {type(tools).__name__}")
    described = []
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise InvalidParameter(f"tool {number} must be an object with name and input_schema")
        if tool.get("type") not in (None, "custom"):
            continue
        if not isinstance(name := tool.get("name"), str) or not name:
            raise InvalidParameter(f"tool {number} has no name")
        schema = tool.get("input_schema") or {"type": "object", "properties": {}}
        function = {"name": name, "description": str(tool.get("description") or ""), "parameters": schema}
        described.append({"type": "function", "function": function})
    return described or None


def _options(body: Mapping[str, Any]) -> SamplingOptions:
    options: dict[str, Any] = {
        name: body[name] for name in ("temperature", "top_p", "top_k", "max_tokens") if body.get(name) is not None
    }
    if body.get("stop_sequences"):
        options["stop"] = body["stop_sequences"]
    config = body.get("output_config")
    form = (config.get("format") if isinstance(config, Mapping) else None) or body.get("output_format")
    match form:
        case None:
            pass
        case {"type": "json_schema", "schema": schema}:
            options["json_schema"] = schema
        case _:
            raise InvalidParameter('the format of output_config must be {"type": "json_schema", "schema": ...}')
    return cast(SamplingOptions, options)


def _variables(body: Mapping[str, Any]) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    match body.get("thinking"):
        case None:
            pass
        case {"type": "disabled"}:
            variables["enable_thinking"] = False
        case {"type": "enabled" | "adaptive" | "between_tools"}:
            variables["enable_thinking"] = True
        case other:
            raise InvalidParameter(f'thinking must have the type "enabled", "adaptive" or "disabled", not {other!r}')
    config = body.get("output_config")
    if isinstance(config, Mapping) and config.get("effort") in _EFFORTS:
        variables["reasoning_effort"] = _EFFORTS[config["effort"]]
    return variables
