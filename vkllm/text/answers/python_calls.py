"""Calls written as in Python: name(key=value, ...). Nothing is evaluated."""

from __future__ import annotations

import re
from typing import Any

from vkllm.text.answers.call_forms import ReadCalls, of_known_tools, read_name
from vkllm.text.answers.json_calls import json_calls
from vkllm.text.answers.parts import FoundCall
from vkllm.text.answers.source import Broken, Reading, Source
from vkllm.text.answers.tools import Tools
from vkllm.text.answers.values import PYTHON, read_value

_IDENTIFIER = re.compile(r"[\w.\-]")


def python_calls(end: str) -> ReadCalls:
    """Calls as in Python, name(key=value, ...), in a list, in lines or in JSON, up to `end`."""
    in_json = json_calls(end)

    def read(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
        start = source.position
        yield from source.space()
        is_list = bool((yield from source.accept("[")))
        yield from source.space()
        if (yield from source.peek()) == "{":
            source.position = start
            return (yield from in_json(source, tools))
        calls: list[FoundCall] = []
        while True:
            calls.append((yield from _python_call(source)))
            yield from source.space()
            if is_list and (yield from source.need(",", "]")) == "]":
                yield from source.space()
                break
            yield from source.space()
            if not is_list and end and (yield from source.comes(end)):
                break
        if not (yield from source.is_at_end()) and end:
            yield from source.need(end)
        return calls

    return read


def bare_python(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
    """A list of calls as in Python without a marker around it, as Llama 4 writes: only of tools that there are."""
    yield from source.need("[")
    start = source.position
    yield from source.space()
    if (yield from source.run(_IDENTIFIER)) not in tools.names:
        raise Broken
    yield from source.need("(")
    source.position = start - 1
    return of_known_tools((yield from python_calls("")(source, tools)), tools)


def _python_call(source: Source) -> Reading[FoundCall]:
    name = yield from read_name(source, _IDENTIFIER)
    yield from source.need("(")
    arguments: dict[str, Any] = {}
    yield from source.space()
    if (yield from source.accept(")")):
        return FoundCall(name, arguments)
    while True:
        yield from source.space()
        key = yield from read_name(source, _IDENTIFIER)
        yield from source.space()
        yield from source.need("=")
        arguments[key] = yield from read_value(source, PYTHON)
        yield from source.space()
        if (yield from source.need(",", ")")) == ")":
            return FoundCall(name, arguments)
