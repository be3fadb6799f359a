"""Text that knows which of its characters came from the messages, through all that templates do with text.

What comes from messages is content and never a special token, even if it looks like one. A `Marked` is a str, so that a
template sees the true text; the functions here make new text from it. Where it is not known which characters of a
result are content, all of them count as content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Spans = tuple[tuple[int, int], ...]
"""Ranges of characters, (start, end), in order and apart."""


class Marked(str):
    """Text, some of it content. spans: the ranges that are."""

    __slots__ = ("spans",)
    spans: Spans


def marked(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """A text with these ranges of it as content; a plain str if there are none."""
    spans = tuple(spans)
    if not spans:
        return str(text)
    result = Marked(text)
    result.spans = spans
    return result


def content(text: str) -> str:
    """A text that is content as a whole."""
    return marked(text, ((0, len(text)),) if text else ())


def spans_of(text: str) -> Spans:
    """The ranges of a text that are content."""
    return text.spans if isinstance(text, Marked) else ()


def like(result: str, *sources: object) -> str:
    """A result made from these in an unknown way: all content if any of them holds some."""
    return content(result) if any(isinstance(source, Marked) for source in sources) else result


def join(parts: Iterable[str], separator: str = "") -> str:
    """As separator.join(parts)."""
    parts = list(parts)
    if separator:
        parts = [piece for part in parts for piece in (separator, part)][1:]
    if not any(isinstance(part, Marked) for part in parts):
        return "".join(parts)
    spans: list[tuple[int, int]] = []
    at = 0
    for part in parts:
        for start, end in spans_of(part):
            if spans and spans[-1][1] == at + start:
                spans[-1] = (spans[-1][0], at + end)
            else:
                spans.append((at + start, at + end))
        at += len(part)
    return marked("".join(parts), spans)


def cut(text: str, start: int, stop: int) -> str:
    """text[start:stop] for 0 <= start, stop."""
    if not isinstance(text, Marked):
        return text[start:stop]
    stop = max(min(stop, len(text)), start)
    inside = ((max(first, start) - start, min(last, stop) - start) for first, last in text.spans)
    return marked(str(text)[start:stop], (span for span in inside if span[0] < span[1]))


def strip(text: str, characters: str | None = None, *, left: bool = True, right: bool = True) -> str:
    """As str.strip, lstrip and rstrip."""
    start = len(text) - len(str.lstrip(text, characters)) if left else 0
    stop = len(str.rstrip(text, characters)) if right else len(text)
    return cut(text, start, stop)


def split(text: str, sep: str | None = None, maxsplit: int = -1, *, from_right: bool = False) -> list[str]:
    """As str.split and rsplit."""
    pieces = (str.rsplit if from_right else str.split)(text, sep, maxsplit)
    return _located(text, pieces, 0 if sep is None else len(sep))


def splitlines(text: str, keepends: bool = False) -> list[str]:
    """As str.splitlines."""
    if not isinstance(text, Marked):
        return text.splitlines(keepends)
    lines = []
    at = 0
    for whole, line in zip(str.splitlines(text, True), str.splitlines(text, keepends), strict=True):
        lines.append(cut(text, at, at + len(line)))
        at += len(whole)
    return lines


def partition(text: str, separator: str, *, from_right: bool = False) -> tuple[str, str, str]:
    """As str.partition and rpartition."""
    before, middle, _ = (str.rpartition if from_right else str.partition)(text, separator)
    end = len(before) + len(middle)
    return cut(text, 0, len(before)), cut(text, len(before), end), cut(text, end, len(text))


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    """As str.replace."""
    if not isinstance(text, Marked) and not isinstance(new, Marked):
        return text.replace(old, new, count)
    if not old:  # new text between all characters
        return like(str.replace(text, old, new, count), text, new)
    return join(split(text, old, count), new) if old in text else text


def recased(text: str, convert: Callable[[str], str]) -> str:
    """The text in other case, by str.upper, str.lower and their like."""
    result = convert(str(text))
    return marked(result, spans_of(text)) if len(result) == len(text) else like(result, text)


def _located(text: str, pieces: list[str], n_between: int) -> list[str]:
    """The pieces of a text with their marks. n_between: characters between two of them; 0 is some white space."""
    if not isinstance(text, Marked):
        return pieces
    located = []
    at = 0
    for piece in pieces:
        start = at if n_between else str.find(text, piece, at)
        located.append(cut(text, start, start + len(piece)))
        at = start + len(piece) + n_between
    return located
