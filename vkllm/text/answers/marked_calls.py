"""Calls between marks of a family's own: Gemma, Mistral, DeepSeek, Kimi."""

from __future__ import annotations

from vkllm.text.answers.call_forms import ReadCalls, arguments_of, read_name
from vkllm.text.answers.json_calls import calls_of
from vkllm.text.answers.parts import FoundCall
from vkllm.text.answers.source import Broken, Reading, Source
from vkllm.text.answers.tools import Tools
from vkllm.text.answers.values import JSON, Notation, read_value


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
        return [FoundCall(name, arguments_of(arguments))]

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
    return [FoundCall(name, arguments_of(arguments), call_id)]


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
        calls.append(FoundCall(name, arguments_of(arguments)))


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
        calls.append(FoundCall(name, arguments_of(arguments), call_id))
