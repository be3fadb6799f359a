"""What all forms of calls share: the type of their readers, names and arguments.

A reader begins after the form's first marker and returns complete calls, or raises Broken; then what it read is text.
The forms are in the files beside this one, their markers in choice.py's table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vkllm.text.answers.parts import FoundCall
from vkllm.text.answers.source import Broken, Reading, Source, whole
from vkllm.text.answers.tools import Tools
from vkllm.text.answers.values import JSON, read_value

ReadCalls = Callable[[Source, Tools], Reading[list[FoundCall]]]

_NAME = re.compile(r"[^\s<>{}\[\]()\"'`|=,]")


def read_name(source: Source, characters: re.Pattern[str] = _NAME) -> Reading[str]:
    """A name of at least one character. Raises Broken."""
    yield from source.peek()
    if name := (yield from source.run(characters)):
        return name
    raise Broken


def json_of(text: str) -> Any:
    """The value of a whole JSON text. Raises Broken."""
    return whole(text, lambda source: read_value(source, JSON))


def arguments_of(value: Any) -> dict[str, Any]:
    """Arguments, which may be the JSON text of an object or null. Raises Broken for others."""
    if isinstance(value, str):
        value = json_of(value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Broken
    return value


def of_known_tools(calls: list[FoundCall], tools: Tools) -> list[FoundCall]:
    """The calls. Raises Broken unless there are such tools."""
    if any(call.name not in tools.names for call in calls):
        raise Broken
    return calls
