"""Blocks of styled text that are wrapped to a width, and what code looks like. It knows neither Markdown nor widgets.

Styles are names of the theme's colours, so a theme may change at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from pygments.lexers import find_lexer_class_by_name
from pygments.util import ClassNotFound
from textual.content import Content
from textual.highlight import highlight
from textual.style import Style

QUIET = "$foreground 50%"
CODE = "$text on $foreground 7%"
BLANK = Content("")
TAB_SIZE = 4
_MIN_WIDTH = 8  # what is nested deeper is cut off at the right

# Code is coloured in parts: to where a blank line comes before one that is not indented, or to where it must end.
_N_LINES_OF_PART = 40
_MAX_LINES_OF_PART = 100


class Line(NamedTuple):
    """A line on the screen. prefix: what stands before the text and is no part of it, such as a bullet.

    x, y: where the text begins in what would be copied, in characters and lines; lines that were wrapped share a y.
    fill: the style of the whole line, to the edge.
    """

    prefix: Content
    text: Content
    x: int
    y: int
    fill: str = ""


class Block:
    """Something that stands on lines of its own. It keeps them for the last width."""

    _width = -1
    _lines: Sequence[Line] = ()

    def lines(self, width: int) -> Sequence[Line]:
        """Its lines of at most so many cells; y counts from the block's first."""
        if width != self._width:
            self._width, self._lines = width, self._wrapped(width)
        return self._lines

    def _wrapped(self, width: int) -> list[Line]:
        raise NotImplementedError


class TextBlock(Block):
    """Text, in which a line feed breaks the line. first, rest: what stands before its first line and the others."""

    def __init__(self, text: Content, first: Content = BLANK, rest: Content = BLANK, fill: str = "") -> None:
        self._text = text
        self._first = first
        self._rest = rest
        self._fill = fill

    def _wrapped(self, width: int) -> list[Line]:
        lines: list[Line] = []
        prefix = self._first
        room = max(width - max(self._first.cell_length, self._rest.cell_length), _MIN_WIDTH)
        for y, row in enumerate(self._text.split(allow_blank=True)):
            x = 0
            for piece in [row] if row.cell_length <= room else row.wrap(room):
                x = max(row.plain.find(piece.plain, x), x)
                lines.append(Line(prefix, piece, x, y, self._fill))
                x += len(piece.plain)
                prefix = self._rest
        return lines


class RuleBlock(Block):
    """A line from side to side."""

    def __init__(self, prefix: Content) -> None:
        self._prefix = prefix

    def _wrapped(self, width: int) -> list[Line]:
        rule = Content.styled("─" * max(width - self._prefix.cell_length, 1), QUIET)
        return [Line(self._prefix, rule, 0, 0)]


class CodeHeader(Block):
    """The line above code: its language, and a word to click on. number: of the block, for that click."""

    def __init__(self, language: str, number: int, prefix: Content) -> None:
        self._language = language
        self._prefix = prefix
        self._click = Style.from_meta({"@click": f"copy_code({number})"})

    def _wrapped(self, width: int) -> list[Line]:
        room = max(width - self._prefix.cell_length - len("copy "), 1)
        name = Content.styled(f" {self._language}", QUIET).truncate(room, ellipsis=True, pad=True)
        copy = Content.assemble(("copy", QUIET), " ").stylize(self._click, 0, len("copy"))
        return [Line(self._prefix + name + copy, BLANK, 0, 0, CODE)]


class TableBlock(Block):
    """Rows of cells, the first one the header. aligns: "left", "center" or "right" for each column."""

    def __init__(self, rows: list[list[Content]], aligns: list[str], first: Content, rest: Content) -> None:
        self._rows = rows
        self._aligns = aligns
        self._first = first
        self._rest = rest

    def _wrapped(self, width: int) -> list[Line]:
        widths = self._widths(width - self._rest.cell_length - 3 * (len(self._aligns) - 1))
        bar, texts = Content.styled(" │ ", QUIET), []
        for number, row in enumerate(self._rows):
            cells = [
                [cell] if cell.cell_length <= room else cell.wrap(room) for cell, room in zip(row, widths, strict=True)
            ]
            for i in range(max(map(len, cells))):
                pieces = [cell[i] if i < len(cell) else BLANK for cell in cells]
                texts.append(bar.join(map(_aligned, pieces, widths, self._aligns)))
            if number == 0:
                texts.append(Content.styled("─┼─".join("─" * room for room in widths), QUIET))
        return [Line(self._rest if y else self._first, text, 0, y) for y, text in enumerate(texts)]

    def _widths(self, room: int) -> list[int]:
        """What each column gets: the room for its longest cell; where that is too much, the widest ones get less."""
        widths = [max(1, *(cell.cell_length for cell in column)) for column in zip(*self._rows, strict=True)]
        while sum(widths) > room and (widest := max(widths)) > _MIN_WIDTH:
            less = -(-(sum(widths) - room) // widths.count(widest))
            second = max((width for width in widths if width < widest), default=0)
            narrower = max(widest - less, second, _MIN_WIDTH)
            widths = [narrower if width == widest else width for width in widths]
        return widths


def _aligned(text: Content, width: int, align: str) -> Content:
    free = max(width - text.cell_length, 0)
    left = {"left": 0, "center": free // 2, "right": free}[align]
    return text.pad(left, free - left)


def plain_blocks(text: str) -> Iterator[Block]:
    """A text that is no Markdown. Many blocks, so that no string is very long."""
    lines = text.expandtabs(TAB_SIZE).split("\n")
    for start in range(0, len(lines), _N_LINES_OF_PART):
        yield TextBlock(Content("\n".join(lines[start : start + _N_LINES_OF_PART])))


def code_blocks(code: str, language: str, rest: Content) -> Iterator[Block]:
    """A block of code in parts. rest: what stands before each line. Only parts that are new take time."""
    name = _lexer_name(language)
    for part in _parts(code):
        yield _code_part(part, name, rest)


def _parts(code: str) -> Iterator[str]:
    lines = code.expandtabs(TAB_SIZE).split("\n")
    start = 0
    for index in range(1, len(lines)):
        is_between = not lines[index - 1].strip() and bool(lines[index][:1].strip())
        length = index - start
        if length >= _MAX_LINES_OF_PART or (is_between and length >= _N_LINES_OF_PART):
            yield "\n".join(lines[start:index])
            start = index
    yield "\n".join(lines[start:])


@lru_cache(maxsize=1024)
def _code_part(code: str, lexer: str, rest: Content) -> Block:
    text = highlight(code, language=lexer)
    prefix = rest + " "
    return TextBlock(text + "\n" * (code.count("\n") - text.plain.count("\n")), prefix, prefix, CODE)


@cache
def _lexer_name(language: str) -> str:
    try:
        return str(find_lexer_class_by_name(language).aliases[0]) if language else "text"
    except (ClassNotFound, IndexError):
        return "text"
