"""Messages and tools as programs pass them, to the plain form that chat templates read.

Clients write the same message in many ways: content as null or in parts, objects of the openai package instead of
mappings. Here they become plain dictionaries, or an error that says which message is wrong. It knows no template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from enum import Enum
from typing import Any

from vkllm.errors import InvalidParameter

Messages = Sequence[Mapping[str, Any]]

SYSTEM_ROLES = ("system", "developer")

REASONING = ("reasoning_content", "reasoning", "thinking")
"""What clients and templates call the thoughts before an answer."""

_MAX_DEPTH = 50
_TEXT_KINDS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")
_TEXT_PARTS = {**dict.fromkeys(_TEXT_KINDS, "text"), "refusal": "refusal"}
"""Types of parts that are text -> the key that holds it."""


def plain_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as plain dictionaries with a role and a text as content.

    Mappings and objects with `model_dump`, such as those of the openai package, are taken. A content that is null or,
    beside tool calls, missing is empty text; the texts of parts are joined with line ends. Other keys are kept.
    Raises InvalidParameter that names the message by its number, the first is 0.
    """
    return [
        _plain_message(message, f"message {number}") for number, message in enumerate(_listed(messages, "messages"))
    ]


def plain_tools(tools: Any) -> list[dict[str, Any]]:
    """Descriptions of tools as plain dictionaries; None means no tools. Raises InvalidParameter that names the tool."""
    plain = []
    for number, tool in enumerate(_listed(tools, "tools") if tools is not None else ()):
        found = plain_value(tool, f"tool {number}")
        if not isinstance(found, dict):
            raise InvalidParameter(
                f"tool {number} is a {type(tool).__name__}; pass a mapping that describes a function"
            )
        function = found.get("function") or found
        if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
            raise InvalidParameter(
                f'tool {number} has no name; a tool is {{"type": "function", "function": {{"name": ...}}}}'
            )
        plain.append(found)
    return plain


def plain_value(value: Any, where: str, depth: int = 0) -> Any:
    """A value as JSON has it: a copy of dictionaries, lists, texts, numbers, booleans and None.

    Raises InvalidParameter, with `where` in its message, for another kind of value or more than 50 levels.
    """
    if depth > _MAX_DEPTH:
        raise InvalidParameter(f"{where} is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, Mapping) and callable(dump := getattr(value, "model_dump", None)):
        value = dump(exclude_none=True)
    if isinstance(value, Mapping):
        return {_key(key, where): plain_value(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray):
        return [plain_value(item, where, depth + 1) for item in value]
    raise InvalidParameter(
        f"{where} holds a value of type {type(value).__name__}; pass texts, numbers, lists and mappings"
    )


def with_arguments(messages: Messages, convert: Callable[[Any], Any]) -> list[Mapping[str, Any]]:
    """The messages with the arguments of their tool calls converted; calls of another shape are kept."""

    def converted(call: Any) -> Any:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "arguments" not in function:
            return call
        return {**call, "function": {**function, "arguments": convert(function["arguments"])}}

    return [
        {**message, "tool_calls": [converted(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def with_reasoning(messages: Messages, names: Set[str]) -> Messages:
    """The messages; where one has reasoning by no name that the template knows, it has it by one that it does.

    names: what the template looks up.
    """
    known = [name for name in REASONING if name in names]
    if not known:
        return messages
    changed = []
    for message in messages:
        said = next((text for name in REASONING if isinstance(text := message.get(name), str) and text), None)
        if said is not None and not any(message.get(name) for name in known):
            message = {**message, known[0]: said}
        changed.append(message)
    return changed


def with_tools_in_system(messages: Messages, tools: str) -> list[dict[str, Any]]:
    """The messages; the first, of the system, has the tools as JSON text, as Phi-4-mini's template reads them."""
    made = [dict(message) for message in messages]
    if not made or made[0]["role"] not in SYSTEM_ROLES:
        made.insert(0, {"role": "system", "content": ""})
    made[0]["tools"] = tools
    return made


def arguments_as_mapping(arguments: Any) -> Any:
    """JSON text of an object becomes the object, as does an empty text; anything else is kept."""
    if not isinstance(arguments, str):
        return arguments
    if not arguments.strip():
        return {}
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def arguments_as_json(arguments: Any) -> Any:
    """An object becomes JSON text; text is kept, but an empty one is an empty object."""
    if not isinstance(arguments, str):
        return json.dumps(arguments, ensure_ascii=False)
    return arguments if arguments.strip() else "{}"


def _plain_message(message: Any, where: str) -> dict[str, Any]:
    plain = plain_value(message, where)
    if not isinstance(plain, dict):
        raise InvalidParameter(f"{where} is of type {type(message).__name__}; pass a mapping with role and content")
    if not isinstance(role := plain.get("role"), str) or not role:
        found = "no role" if role is None else f"the role {role!r}"
        raise InvalidParameter(f'{where} has {found}; give it a role such as "user" or "assistant"')
    calls = plain.get("tool_calls")
    if calls is None:
        plain.pop("tool_calls", None)
    elif not isinstance(calls, list):
        raise InvalidParameter(f"{where} has tool_calls of type {type(calls).__name__}; pass a list of calls")
    has_content = "content" in plain or hasattr(message, "content")  # objects leave out what is None
    if not (has_content or calls or any(map(plain.get, REASONING))):
        raise InvalidParameter(f"{where} has neither content nor tool_calls")
    plain["content"] = content_text(plain.get("content"), where)
    return plain


def content_text(content: Any, where: str, *, between: str = "\n") -> str:
    """The text of a message's content, which may be null or a list of parts. between: what joins these.

    Raises InvalidParameter, with `where` in its message.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        found = type(content).__name__
        raise InvalidParameter(f"{where} has content of type {found}; pass text or a list of text parts")
    return between.join(_part_text(part, where) for part in content)


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise InvalidParameter(f"{where} has a part of type {kind!r}; vkllm reads parts of type 'text' only")
    if not isinstance(text := part.get(_TEXT_PARTS[kind]), str):
        raise InvalidParameter(f"{where} has a part of type {kind!r} whose {_TEXT_PARTS[kind]!r} is not text")
    return text


def _listed(values: Any, name: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidParameter(f"{name} must be a list of mappings, not of type {type(values).__name__}")
    return list(values)


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise InvalidParameter(f"{where} has the key {key!r}; keys must be texts")
    return str(key.value if isinstance(key, Enum) else key)
