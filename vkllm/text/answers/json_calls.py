"""Calls written as JSON, with markers around them or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vkllm.text.answers.call_forms import ReadCalls, arguments_of, of_known_tools
from vkllm.text.answers.parts import FoundCall
from vkllm.text.answers.source import Broken, Reading, Source
from vkllm.text.answers.tools import Tools
from vkllm.text.answers.values import JSON, read_value

_ARGUMENTS = ("arguments", "parameters", "args", "input")


def calls_of(value: Any) -> list[FoundCall]:
    """The calls that a JSON value says, which name a tool and its arguments. Raises Broken if it says none."""
    if isinstance(value, list) and value:
        return [call for each in value for call in calls_of(each)]
    if not isinstance(value, dict):
        raise Broken
    if isinstance(inner := value.get("function"), dict):
        value = {"id": value.get("id"), **inner}
    name = value.get("name") or value.get("tool_name") or value.get("function")
    given = [value[key] for key in _ARGUMENTS if key in value]
    if not isinstance(name, str) or not name or len(given) > 1:
        raise Broken
    call_id = value.get("id")
    return [FoundCall(name, arguments_of(given[0] if given else {}), call_id if isinstance(call_id, str) else None)]


def calls_by_name(value: Any) -> list[FoundCall]:
    """The calls of a list of {"tool": {arguments}}, as Apertus writes. Raises Broken for others."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise Broken
    return [FoundCall(name, arguments_of(arguments)) for each in value for name, arguments in each.items()]


def json_calls(end: str = "", calls_in: Callable[[Any], list[FoundCall]] = calls_of) -> ReadCalls:
    """JSON values up to `end`, another <tool_call> or the answer's end. calls_in: the calls that one says."""

    def read(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
        calls: list[FoundCall] = []
        while True:
            calls += calls_in((yield from read_value(source, JSON)))
            start = source.position
            if end and (yield from source.comes(end, "<tool_call>")):
                yield from source.space()
                yield from source.accept(end)
                return calls
            yield from source.space()
            separator = yield from source.accept(";", ",")
            yield from source.space()
            if (yield from source.is_at_end()) or (yield from source.peek()) not in "{[":
                if end or separator:
                    raise Broken
                source.position = start
                return calls

    return read


def bare_json(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
    """JSON without a marker around it, as Llama 3 writes: only if it calls tools that there are, with arguments."""
    if (yield from source.peek()) not in "{[":
        raise Broken
    yield from _looks_like_call(source)
    return of_known_tools((yield from json_calls(calls_in=_calls_with_arguments)(source, tools)), tools)


def _calls_with_arguments(value: Any) -> list[FoundCall]:
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict) or not ({"function", *_ARGUMENTS} & each.keys()):
            raise Broken
    return calls_of(value)


def _looks_like_call(source: Source) -> Reading[None]:
    """Raises Broken for JSON whose first key no call begins with, so that other JSON is not held back."""
    start = source.position
    while (yield from source.accept("[", "{")):
        yield from source.space()
    yield from source.need('"name"', '"type"', '"function"', '"id"', '"arguments"', '"parameters"')
    source.position = start


def command_r_calls(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
    """Command R's list of calls in a block of JSON."""
    calls = calls_of((yield from read_value(source, JSON)))
    yield from source.space()
    if not (yield from source.is_at_end()):
        yield from source.need("```")
    return calls
