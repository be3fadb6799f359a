"""Reads gpt-oss' answers: messages with a channel each, as its harmony format has them.

<|channel|>analysis<|message|>...<|end|> is reasoning, the channels final and commentary are text, and a message to
functions.NAME is a call. Every other message stays text as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vkllm.text.answers.parts import Collected, FoundCall
from vkllm.text.answers.source import Broken, Markers, Reading, Source
from vkllm.text.answers.tools import Tools
from vkllm.text.answers.values import JSON, read_value

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")

_BEGINS = ("<|start|>", "<|channel|>")
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_CHANNEL = re.compile(r"<\|channel\|>(analysis|commentary|final)")
_RECIPIENT = re.compile(r"to=(?!assistant\b)([^\s<]+)")
_HEADER = re.compile(
    rf"(?:<\|start\|>)?(?:assistant)?(?:{_CHANNEL.pattern}|[ ]*to=[^\s<]+|[ ]*<\|constrain\|>\w+|[ ]+\w+)*[ ]*"
    r"<\|message\|>"
)
_MAX_HEADER = 300  # characters
_IN_HEADER = re.compile(r"[^<\n]")
_TO_TOOL = "functions."


class HarmonyAnswer:
    """Reads one answer into parts."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def read(self, source: Source, out: Collected, *, is_thinking: bool) -> Reading[None]:
        """Reads to the end. The prompt has begun a message, so the answer may begin in its header; it opens no
        channel, so is_thinking changes nothing."""
        begin = source.position
        yield from source.space()
        if not (yield from source.accept("to=")):
            source.position = begin
            yield from _text(source, out.say, _BEGINS)
        else:
            source.position = begin
        while not (yield from source.is_at_end()):
            yield from self._message(source, out)

    def _message(self, source: Source, out: Collected) -> Reading[None]:
        """A message with its header; where there is no header, the first marker is text."""
        start = source.position
        header = yield from _read_header(source)
        if header is None:
            source.position = start
            out.say((yield from source.accept(*_BEGINS, " to=", "to=")))
            yield from _text(source, out.say, _BEGINS)
            return
        recipient = found[1] if (found := _RECIPIENT.search(header)) else None
        channels = _CHANNEL.findall(header)
        if recipient is not None and not (yield from self._call(source, out, recipient)):
            out.say(source.since(start))
            yield from _text(source, out.say, _BEGINS)
            return
        if recipient is not None:
            return
        if channels[-1:] != ["analysis"]:
            yield from _text(source, out.say, (*_BEGINS, *_ENDS))
        else:
            if out.has_reasoning:
                out.think("\n\n")
            yield from _text(source, out.think, (*_BEGINS, *_ENDS))
        yield from source.accept(*_ENDS)

    def _call(self, source: Source, out: Collected, recipient: str) -> Reading[bool]:
        """The arguments of a call; False, with nothing read, where there is none."""
        start = source.position
        name = recipient.removeprefix(_TO_TOOL)
        try:
            if not self._tools or not recipient.startswith(_TO_TOOL) or not name:
                raise Broken
            arguments = yield from read_value(source, JSON)
            yield from source.space()
            if not isinstance(arguments, dict):
                raise Broken
            if not (yield from source.accept(*_ENDS)) and not (yield from source.comes(*_BEGINS)):
                raise Broken
        except Broken:
            source.position = start
            return False
        out.call([FoundCall(name, arguments)])
        return True


def _read_header(source: Source) -> Reading[str | None]:
    """What stands before a message's text, up to <|message|>; None, and anything may be read, where there is none."""
    start = source.position
    while True:
        yield from source.run(_IN_HEADER)
        mark = yield from source.accept(*MARKS)
        if mark == "<|message|>":
            return header if _HEADER.fullmatch(header := source.since(start)) else None
        if not mark and not (yield from source.accept("<")):
            return None
        if mark in _ENDS or source.position - start > _MAX_HEADER:
            return None


def _text(source: Source, say: Callable[[str], None], ends: tuple[str, ...]) -> Reading[None]:
    """Passes text on up to a marker, which is not read."""
    markers = Markers(ends)
    while True:
        rest, is_last = source.rest, source.is_whole
        found = markers.find(rest)
        n = found.start() if found else len(rest) if is_last else len(rest) - markers.n_held(rest)
        say(rest[:n])
        source.position += n
        if found:
            return
        source.forget()
        if is_last:
            return
        yield from source.more()
