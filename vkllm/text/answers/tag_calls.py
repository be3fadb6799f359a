"""Calls written in tags, as in XML: <tool_call>, <function=...>, <invoke name="...">, GLM's pairs."""

from __future__ import annotations

import re
from typing import Any

from vkllm.text.answers.call_forms import ReadCalls, json_of, read_name
from vkllm.text.answers.json_calls import json_calls
from vkllm.text.answers.parts import FoundCall
from vkllm.text.answers.source import Reading, Source
from vkllm.text.answers.tools import Tools
from vkllm.text.answers.values import JSON, read_value

_KEY = re.compile(r"[^<>\n]")
_QUOTED = re.compile(r"[^\"<>\n]")


def tool_call_tag(end: str) -> ReadCalls:
    """What stands in <tool_call>...</tool_call>: JSON, <function=...> or a name with <arg_key>s, by how it begins."""
    in_json, in_tags = json_calls(end), function_tags(end)

    def read(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
        yield from source.space()
        if (yield from source.peek()) in "{[":
            return (yield from in_json(source, tools))
        if not (yield from source.accept("<function=")):
            return (yield from _argument_pairs(source, tools, end))
        return (yield from in_tags(source, tools))

    return read


def function_tags(end: str) -> ReadCalls:
    """What follows the first <function=, also further such tags, up to `end`, which models forget."""

    def read(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
        calls = [(yield from _function_tag(source, tools, end))]
        while True:
            start = source.position
            yield from source.space()
            if (yield from source.accept(end)):
                return calls
            if not (yield from source.accept("<function=")):
                source.position = start
                return calls
            calls.append((yield from _function_tag(source, tools, end)))

    return read


def _function_tag(source: Source, tools: Tools, end: str) -> Reading[FoundCall]:
    """What follows <function=: a name, then <parameter=...> tags of texts or one JSON object.

    Models forget </parameter>: another of the tool's arguments ends a text too, and the call's own end.
    """
    name = (yield from read_name(source)).strip("\"'")
    yield from source.need(">")
    arguments: dict[str, Any] = {}
    yield from source.space()
    if (yield from source.peek()) == "{":
        arguments = yield from read_value(source, JSON)
        yield from source.space()
        yield from source.need("</function>")
        return FoundCall(name, arguments)
    while True:
        yield from source.space()
        if (yield from source.need("<parameter=", "</function>")) == "</function>":
            return FoundCall(name, arguments)
        key = (yield from read_name(source, _KEY)).strip("\"'")
        yield from source.need(">")
        arguments[key] = ""
        others = [f"\n<parameter={other}>" for other in tools.arguments(name) if other not in arguments]
        text = ""
        while True:
            more, found = yield from source.until("</parameter>", "\n</function>", *others)
            text += more
            is_end = found not in ("</parameter>", "\n</function>")
            if not is_end:
                is_close = found == "</parameter>"
                is_end = yield from source.comes(*(("<parameter=", "</function>") if is_close else (end,)))
            if is_end:
                break
            text += found
        if found != "</parameter>":
            source.position -= len(found)
        arguments[key] = tools.typed(name, key, text.removeprefix("\n").removesuffix("\n"))


def invoke_tags(prefix: str, end: str) -> ReadCalls:
    """<invoke name="..."> tags with <parameter name="..."> tags of texts, up to `end`."""
    close, close_one = f"</{prefix}invoke>", f"</{prefix}parameter>"

    def read(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
        calls: list[FoundCall] = []
        while True:
            yield from source.space()
            if calls and (yield from source.accept(end)):
                return calls
            yield from source.need(f'<{prefix}invoke name="')
            name = yield from read_name(source)
            yield from source.need('">')
            arguments: dict[str, Any] = {}
            while True:
                yield from source.space()
                if (yield from source.need(f'<{prefix}parameter name="', close)) == close:
                    break
                key = yield from read_name(source, _QUOTED)
                kind = yield from source.need('" string="true">', '" string="false">', '">')
                text = yield from _text_before(source, close_one, f"<{prefix}parameter", close)
                if kind == '" string="false">':
                    arguments[key] = json_of(text)
                else:
                    arguments[key] = text if "true" in kind else tools.typed(name, key, text)
            calls.append(FoundCall(name, arguments))

    return read


def _argument_pairs(source: Source, tools: Tools, end: str) -> Reading[list[FoundCall]]:
    """A name, then <arg_key> and <arg_value> in turn, as GLM writes."""
    name = yield from read_name(source)
    arguments: dict[str, Any] = {}
    while True:
        yield from source.space()
        if (yield from source.need("<arg_key>", end)) == end:
            return [FoundCall(name, arguments)]
        key = yield from read_name(source, _KEY)
        yield from source.need("</arg_key>")
        yield from source.space()
        yield from source.need("<arg_value>")
        text = yield from _text_before(source, "</arg_value>", "<arg_key>", end)
        arguments[key.strip()] = tools.typed(name, key.strip(), text)


def _text_before(source: Source, close: str, *then: str) -> Reading[str]:
    """Text up to a tag that is followed by one of those that may follow it; other such tags are part of the text."""
    text = ""
    while True:
        more, _ = yield from source.until(close)
        text += more
        if (yield from source.comes(*then)):
            return text
        text += close
