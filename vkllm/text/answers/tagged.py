"""Reads answers whose parts have marks around them: <think>...</think>, text, <tool_call>...</tool_call> and the like.

It knows where parts begin and end and what becomes of white space between them; how a call is written call_forms.py
knows. Whatever is no complete call is text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vkllm.text.answers.call_forms import ReadCalls
from vkllm.text.answers.parts import Collected
from vkllm.text.answers.source import Broken, Markers, Reading, Source, Unfinished
from vkllm.text.answers.tools import Tools


@dataclass(frozen=True)
class Tags:
    """What reasoning stands between. name: a line that may follow the opening tag, as in Gemma 4's.

    is_anywhere: reasoning may come after text; else only an answer's beginning is reasoning.
    """

    open: str
    close: str
    name: str = ""
    is_anywhere: bool = False


@dataclass(frozen=True)
class Calls:
    """A form of calls. begin: the marker before them. read: what reads them after it. marks: other tokens in them.

    sign: what shows that a model has this form, where that is not the first marker.
    """

    begin: str
    read: ReadCalls
    marks: tuple[str, ...] = ()
    sign: str = ""


class TaggedAnswer:
    """Reads one answer into parts. bare: readers of calls without a marker, tried where a part of text begins."""

    def __init__(self, tags: Tags | None, calls: Sequence[Calls], bare: Sequence[ReadCalls], tools: Tools) -> None:
        self._tags = tags
        self._calls = {form.begin: form.read for form in calls} if tools else {}
        self._bare = bare if tools else ()
        self._tools = tools
        self._is_cut = False

    def read(self, source: Source, out: Collected, *, is_thinking: bool) -> Reading[None]:
        """Reads to the end. is_thinking: the prompt has opened the reasoning."""
        tags = self._tags
        if tags is not None:
            start = source.position
            space = yield from source.space()
            tag = yield from source.accept(tags.open, tags.close)
            if tag == tags.close:  # of no reasoning
                yield from _end_part(source, out)
            elif is_thinking or tag:
                yield from self._reasoning(source, out, tags)
            elif space:
                source.position = start
        in_text = list(self._calls) + ([tags.open] if tags is not None and tags.is_anywhere else [])
        markers = Markers(in_text)
        is_fresh = True
        while True:
            if is_fresh and self._bare:
                yield from self._bare_calls(source, out)
            begin = yield from _pass_on(source, markers, out)
            if not begin:
                return
            if tags is not None and begin == tags.open:
                if out.has_reasoning:
                    out.think("\n\n")
                yield from self._reasoning(source, out, tags)
            elif not (yield from self._attempt(source, out, begin)):
                out.say(begin)
                markers = Markers(()) if self._is_cut else markers
                is_fresh = False
                continue
            yield from _end_part(source, out)
            is_fresh = True

    def _reasoning(self, source: Source, out: Collected, tags: Tags) -> Reading[None]:
        """Reasoning up to its end, or to a call: models forget to end it."""
        if tags.name:
            yield from source.accept(f"{tags.name}\n")
        yield from source.space()
        markers = Markers([tags.close, *self._calls])
        gap = ""
        while True:
            rest, is_last = source.rest, source.is_whole
            found = markers.find(rest)
            n = found.start() if found else len(rest) if is_last else len(rest) - markers.n_held(rest)
            kept = rest[:n] if is_last and not found else rest[:n].rstrip()
            if kept:
                out.think(gap + kept)
            gap = rest[len(kept) : n] if kept else gap + rest[:n]
            source.position += found.end() if found else n
            if found is None:
                source.forget()
                if is_last:
                    return
                yield from source.more()
            elif found[0] == tags.close:
                yield from _end_part(source, out)
                return
            elif (yield from self._attempt(source, out, found[0])):
                yield from _end_part(source, out)
                if (yield from source.accept(tags.close)):
                    yield from _end_part(source, out)
                return
            else:
                out.think(gap + found[0])
                gap = ""
                markers = Markers(()) if self._is_cut else markers

    def _attempt(self, source: Source, out: Collected, begin: str) -> Reading[bool]:
        """Reads calls after their marker; False, with nothing read, where there are none. One that the answer's end
        cuts is text as a whole: what is in it is no call either."""
        start = source.position
        try:
            out.call((yield from self._calls[begin](source, self._tools)))
        except Broken as error:
            source.position = start
            self._is_cut = isinstance(error, Unfinished)
            return False
        return True

    def _bare_calls(self, source: Source, out: Collected) -> Reading[None]:
        """Calls without a marker, if they come here."""
        start = source.position
        for read in self._bare:
            yield from source.space()
            try:
                out.call((yield from read(source, self._tools)))
            except Broken:
                source.position = start
            else:
                yield from _end_part(source, out)
                return


def _pass_on(source: Source, markers: Markers, out: Collected) -> Reading[str]:
    """Passes text on up to a marker, which is read and returned; "" at the answer's end.

    What may become a marker is held back, and the white space before it; that is the gap between two parts.
    """
    while True:
        rest, is_last = source.rest, source.is_whole
        found = markers.find(rest)
        n = found.start() if found else len(rest) if is_last else len(rest) - markers.n_held(rest)
        kept = rest[:n].rstrip() if found else rest[:n]
        out.say(kept)
        if found:
            out.gap += rest[len(kept) : n]
            source.position += found.end()
            return found[0]
        source.position += n
        source.forget()
        if is_last:
            return ""
        yield from source.more()


def _end_part(source: Source, out: Collected) -> Reading[None]:
    """White space after a part that is no text: kept only between two texts."""
    space = yield from source.space()
    out.gap = out.gap + space if out.has_text and not (yield from source.is_at_end()) else ""
