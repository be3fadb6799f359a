"""How families of models write calls of tools: one reader a form, from the characters after its first marker.

Each returns complete calls, or raises Broken; then what it read is text. A form's table of markers is choice.py's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vkllm.text.answers.parts import FoundCall
from vkllm.text.answers.source import Broken, Reading, Source
from vkllm.text.answers.tools import Tools
from vkllm.text.answers.values import JSON, PYTHON, Notation, read_value

ReadCalls = Callable[[Source, Tools], Reading[list[FoundCall]]]

_NAME = re.compile(r"[^\s<>{}\[\]()\"'`|=,]")
_KEY = re.compile(r"[^<>\n]")
_IDENTIFIER = re.compile(r"[\w.\-]")
_ARGUMENTS = ("arguments", "parameters", "args", "input")


def read_name(source: Source, characters: re.Pattern[str] = _NAME) -> Reading[str]:
    """A name of at least one character. Raises Broken."""
    yield from source.peek()
    if name := (yield from source.run(characters)):
        return name
    raise Broken


# --- JSON ------------------------------------------------------------------------------------------------------------


def json_calls(end: str = "", *, by_name: bool = False) -> ReadCalls:
    """JSON objects that name a tool and its arguments, or lists of them, up to `end` or the answer's end.

    by_name: an object's only key is the tool's name, its value the arguments.
    """

    def read(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
        calls: list[FoundCall] = []
        while True:
            calls += calls_of((yield from read_value(source, JSON)), by_name=by_name)
            start = source.position
            yield from source.space()
            if (yield from source.is_at_end()):
                return calls
            if end and (yield from source.accept(end)):
                return calls
            separator = yield from source.accept(";", ",")
            yield from source.space()
            if (yield from source.is_at_end()) or (yield from source.peek()) not in "{[":
                if end or separator:
                    raise Broken
                source.position = start
                return calls

    return read


def calls_of(value: Any, *, by_name: bool = False) -> list[FoundCall]:
    """The calls that a JSON value says. Raises Broken if it says none."""
    if isinstance(value, list) and value:
        return [call for each in value for call in calls_of(each, by_name=by_name)]
    if not isinstance(value, dict):
        raise Broken
    if by_name:
        return [FoundCall(name, _object(arguments)) for name, arguments in value.items()]
    if isinstance(inner := value.get("function"), dict):
        value = {"id": value.get("id"), **inner}
    name = value.get("name") or value.get("tool_name") or value.get("function")
    given = [value[key] for key in _ARGUMENTS if key in value]
    if not isinstance(name, str) or not name or len(given) > 1:
        raise Broken
    call_id = value.get("id")
    return [FoundCall(name, _object(given[0] if given else {}), call_id if isinstance(call_id, str) else None)]


def _object(arguments: Any) -> dict[str, Any]:
    """Arguments, which may be the JSON text of an object or null. Raises Broken for others."""
    if isinstance(arguments, str):
        from_text = Source(arguments, is_whole=True)
        reading = read_value(from_text, JSON)
        try:
            next(reading)
        except StopIteration as done:
            arguments = done.value
        if from_text.rest.strip():
            raise Broken
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise Broken
    return arguments


def bare_json(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
    """JSON without a marker around it, as Llama 3 writes: only if it calls tools that there are."""
    if (yield from source.peek()) not in "{[":
        raise Broken
    yield from _looks_like_call(source)
    calls = yield from json_calls()(source, tools)
    return _known(calls, tools)


def _looks_like_call(source: Source) -> Reading[None]:
    """Raises Broken for JSON whose first key no call begins with, so that other JSON is not held back."""
    start = source.position
    while (yield from source.accept("[", "{")):
        yield from source.space()
    yield from source.need('"name"', '"type"', '"function"', '"id"', '"arguments"', '"parameters"')
    source.position = start


def _known(calls: list[FoundCall], tools: Tools) -> list[FoundCall]:
    if any(call.name not in tools.names for call in calls):
        raise Broken
    return calls


# --- Marks and XML ---------------------------------------------------------------------------------------------------


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
        calls = [(yield from _function_tag(source, tools))]
        while True:
            start = source.position
            yield from source.space()
            if (yield from source.accept(end)):
                return calls
            if not (yield from source.accept("<function=")):
                source.position = start
                return calls
            calls.append((yield from _function_tag(source, tools)))

    return read


def _function_tag(source: Source, tools: Tools) -> Reading[FoundCall]:
    """What follows <function=: a name, then <parameter=...> tags of texts or one JSON object."""
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
        text = yield from _text_before(source, "</parameter>", "<parameter=", "</function>")
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
                    arguments[key] = yield from read_value(_as_source(text), JSON)
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


def _as_source(text: str) -> Source:
    return Source(text, is_whole=True)


_QUOTED = re.compile(r"[^\"<>\n]")


# --- Notations of their own ------------------------------------------------------------------------------------------


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
            calls.append((yield from _python_call(source, PYTHON)))
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
    return _known((yield from python_calls("")(source, tools)), tools)


def _python_call(source: Source, notation: Notation) -> Reading[FoundCall]:
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
        arguments[key] = yield from read_value(source, notation)
        yield from source.space()
        if (yield from source.need(",", ")")) == ")":
            return FoundCall(name, arguments)


def gemma_call(notation: Notation, end: str) -> ReadCalls:
    """call:NAME{key:value} up to `end`, with texts between marks."""

    def read(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
        yield from source.space()
        yield from source.need("call:")
        name = yield from read_name(source)
        arguments = yield from read_value(source, notation)
        yield from source.space()
        if not (yield from source.is_at_end()):
            yield from source.need(end)
        return [FoundCall(name, _object(arguments))]

    return read


def mistral_calls(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
    """A JSON list, or one NAME[CALL_ID]ID[ARGS]{...}, in which the marks may be missing."""
    yield from source.space()
    if (yield from source.peek()) in "{[":
        calls = calls_of((yield from read_value(source, JSON)))
        return calls
    name = yield from read_name(source)
    call_id = None
    if (yield from source.accept("[CALL_ID]")):
        call_id = yield from read_name(source)
    yield from source.accept("[ARGS]")
    arguments = yield from read_value(source, JSON)
    return [FoundCall(name, _object(arguments), call_id)]


def deepseek_calls(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
    """DeepSeek's marks around each call and around all of them; arguments are JSON, in V3 and R1 in a block of code."""
    calls: list[FoundCall] = []
    while True:
        yield from source.space()
        if calls and ((yield from source.accept("<｜tool▁calls▁end｜>")) or (yield from source.is_at_end())):
            return calls
        yield from source.need("<｜tool▁call▁begin｜>")
        name = yield from read_name(source)
        yield from source.need("<｜tool▁sep｜>")
        yield from source.space()
        is_block = (yield from source.peek()) != "{"
        if is_block:
            name = yield from read_name(source)
            yield from source.space()
            yield from source.need("```json")
        arguments = yield from read_value(source, JSON)
        yield from source.space()
        if is_block:
            yield from source.need("```")
            yield from source.space()
        yield from source.need("<｜tool▁call▁end｜>")
        calls.append(FoundCall(name, _object(arguments)))


def kimi_calls(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
    """Kimi's marks; the id is functions.NAME:NUMBER."""
    calls: list[FoundCall] = []
    while True:
        yield from source.space()
        if calls and ((yield from source.accept("<|tool_calls_section_end|>")) or (yield from source.is_at_end())):
            return calls
        yield from source.need("<|tool_call_begin|>")
        call_id = (yield from source.until("<|tool_call_argument_begin|>"))[0].strip()
        name, colon, number = call_id.removeprefix("functions.").rpartition(":")
        if not colon or not number.isdecimal():
            name = call_id.removeprefix("functions.")
        if not name:
            raise Broken
        arguments = yield from read_value(source, JSON)
        yield from source.space()
        yield from source.need("<|tool_call_end|>")
        calls.append(FoundCall(name, _object(arguments), call_id))


def command_r_calls(source: Source, tools: Tools) -> Reading[list[FoundCall]]:
    """Command R's list of calls in a block of JSON."""
    calls = calls_of((yield from read_value(source, JSON)))
    yield from source.space()
    if not (yield from source.is_at_end()):
        yield from source.need("```")
    return calls
