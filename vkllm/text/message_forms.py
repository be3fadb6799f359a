"""Other forms of the same conversation, for templates that refuse the form that clients send or leave some of it out.

Some templates know no system message, take one call of a tool at a time, no text beside reasoning and a call, or want
ids of nine characters; some fail on a tool without a description, and some write no calls at all. A conversation is
tried as it is first, so what a template takes is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vkllm.text.messages import REASONING, Messages
from vkllm.text.templates import marked

Tools = Sequence[Mapping[str, Any]]

_ID_LENGTH = 9
"""Of the ids of calls in Mistral's templates: letters and digits."""


def forms(messages: Messages, tools: Tools) -> Iterator[tuple[Messages, Tools]]:
    """The conversation as it is, and then in forms that differ from it more and more."""
    yield messages, tools
    whole = [_described(tool) for tool in tools]
    short = _with_short_ids(messages)
    yield short, whole
    one_by_one = one_call_at_a_time(short)
    if one_by_one != short:
        yield one_by_one, whole
    thought = _thought_before_calls(one_by_one)
    if thought != one_by_one:
        yield thought, whole
    if any(message["role"] == "system" for message in messages):
        for each in (messages, short, one_by_one, thought):
            yield _without_system(each), whole


def _described(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool whose function and parameters have all that templates may read."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping):
        parameters = {}
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping):
        properties = {}
    described = {
        name: {"description": "", **schema} if isinstance(schema, Mapping) else schema
        for name, schema in properties.items()
    }
    parameters = {"type": "object", "required": [], **parameters, "properties": described}
    return {**tool, "function": {"description": "", **function, "parameters": parameters}}


def _with_short_ids(messages: Messages) -> list[Mapping[str, Any]]:
    """The calls of tools and their results with ids of nine letters and digits; results without one are in order."""
    changed: list[Mapping[str, Any]] = []
    open_ids: list[str] = []
    n_calls = 0
    for message in messages:
        if calls := message.get("tool_calls"):
            open_ids = []
            for call in calls:
                n_calls += 1
                open_ids.append(_short_id(call.get("id") if isinstance(call, Mapping) else None, n_calls))
            numbered = zip(calls, open_ids, strict=True)
            message = {**message, "tool_calls": [{**c, "id": i} if isinstance(c, Mapping) else c for c, i in numbered]}
        elif message["role"] == "tool":
            given = message.get("tool_call_id")
            call_id = _short_id(given, 0) if given or not open_ids else open_ids[0]
            if call_id in open_ids:
                open_ids.remove(call_id)
            message = {**message, "tool_call_id": call_id}
        changed.append(message)
    return changed


def _short_id(given: Any, number: int) -> str:
    letters = re.sub("[^A-Za-z0-9]", "", str(given)) if given else str(number)
    return letters[-_ID_LENGTH:].rjust(_ID_LENGTH, "0")


def calls_in_content(messages: Messages, written: Callable[[Sequence[Mapping[str, Any]]], str]) -> Messages:
    """Calls of tools as part of what the message says. written: the text of calls."""

    def changed(message: Mapping[str, Any]) -> Mapping[str, Any]:
        functions = [call.get("function") for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
        calls = [function for function in functions if isinstance(function, Mapping) and function.get("name")]
        if not calls:
            return message
        said = [marked.content(message["content"])] if message["content"] else []
        without = {key: value for key, value in message.items() if key != "tool_calls"}
        return {**without, "content": marked.join([*said, written(calls)], "\n")}

    return [changed(message) for message in messages]


def one_call_at_a_time(messages: Messages) -> list[Mapping[str, Any]]:
    """Each call of a tool in a message of its own, its result after it; text and reasoning are in the first."""
    changed: list[Mapping[str, Any]] = []
    waiting: list[Mapping[str, Any]] = []  # calls of the last message that had several, not yet written

    def write_call(result: Mapping[str, Any] | None = None) -> None:
        ids = [call["tool_calls"][0].get("id") for call in waiting]
        wanted = result.get("tool_call_id") if result else None
        changed.append(waiting.pop(ids.index(wanted) if wanted in ids else 0))

    for message in messages:
        if message["role"] == "tool" and waiting:
            write_call(message)
        else:
            while waiting:
                write_call()
            calls = message.get("tool_calls") or ()
            if len(calls) > 1 and all(isinstance(call, Mapping) for call in calls):
                more = {**{key: value for key, value in message.items() if key not in REASONING}, "content": ""}
                waiting = [{**(more if i else message), "tool_calls": [call]} for i, call in enumerate(calls)]
                continue
        changed.append(message)
    return changed + waiting


def _thought_before_calls(messages: Messages) -> list[Mapping[str, Any]]:
    """What is said beside reasoning and calls is a part of the reasoning."""

    def changed(message: Mapping[str, Any]) -> Mapping[str, Any]:
        thought = {name: text for name in REASONING if isinstance(text := message.get(name), str) and text}
        if not (thought and message.get("tool_calls") and message["content"]):
            return message
        longer = {name: f"{text}\n\n{message['content']}" for name, text in thought.items()}
        return {**message, **longer, "content": ""}

    return [changed(message) for message in messages]


def _without_system(messages: Messages) -> list[Mapping[str, Any]]:
    """What the system says stands at the beginning of the next message of the user."""
    changed: list[Mapping[str, Any]] = []
    said: list[str] = []
    for message in messages:
        if message["role"] == "system":
            said += [message["content"]] if message["content"] else []
            continue
        if message["role"] == "user" and said:
            message = {**message, "content": "\n".join([*said, message["content"]])}
            said = []
        changed.append(message)
    return [*changed, {"role": "user", "content": "\n".join(said)}] if said else changed
