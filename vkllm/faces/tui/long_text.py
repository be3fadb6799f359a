"""A text of any length on the screen, plain or Markdown. Only the lines that can be seen are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.visual import Visual
from textual.widget import Widget

from vkllm.faces.tui.markdown_text import Document
from vkllm.faces.tui.text_blocks import Block, Line, plain_blocks


class LongText(Widget):
    """One text. It can be selected with the mouse, and links and the word above code can be clicked on."""

    @dataclass
    class LinkClicked(Message):
        """A link was clicked on."""

        href: str

    @dataclass
    class CodeClicked(Message):
        """What is above a block of code was clicked on. code: the block's."""

        code: str

    def __init__(self, text: str = "", *, is_markdown: bool = True, classes: str = "") -> None:
        super().__init__(classes=classes)
        self._document = Document() if is_markdown else None
        self._text = ""
        self._sections: list[Sequence[Block]] = []
        self._starts: list[int] = []  # the first line of each section that is wrapped
        self._lines: list[Line] = []
        self._width = 0
        self._strips: dict[int, Strip] = {}  # of lines that were drawn, in this style
        self._strips_style: Style | None = None
        self.show(text)

    @property
    def codes(self) -> list[str]:
        """The contents of the blocks of code."""
        return [] if self._document is None else self._document.codes

    def show(self, text: str, *, is_live: bool = False) -> None:
        """Replaces the text; cheap where it is only longer. is_live: it is still being written."""
        if self._document is not None:
            n_kept = self._document.update(text, is_live=is_live)
            self._sections = [section.blocks for section in self._document.sections]
        elif text != self._text:
            n_kept, self._text = 0, text
            self._sections = [[block] for block in plain_blocks(text)]
        else:
            return
        n_lines = len(self._lines)
        self._wrap(self._width, n_kept)
        if self.is_mounted:
            self.refresh(layout=len(self._lines) != n_lines)

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """All that there is."""
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Lines at a width."""
        if width != self._width:
            self._wrap(width, 0)
        return len(self._lines)

    def render_line(self, y: int) -> Strip:
        """One line, with what is selected of it marked."""
        style = self.visual_style
        if y >= len(self._lines):
            return Strip.blank(self.size.width, style.rich_style)
        if style != self._strips_style:
            self._strips_style = style
            self._strips.clear()
        if y not in self._strips:
            self._strips[y] = self._drawn(self._lines[y], style)
        return self._strips[y]

    def notify_style_update(self) -> None:
        """Another theme has other colours."""
        self._strips.clear()
        super().notify_style_update()

    def selection_updated(self, selection: Selection | None) -> None:
        """Marks what is selected."""
        self._strips.clear()
        super().selection_updated(selection)

    def _drawn(self, line: Line, style: Style) -> Strip:
        text = line.text
        if (selection := self.text_selection) is not None and (span := selection.get_span(line.y)) is not None:
            start, end = (max(place - line.x, 0) if place >= 0 else len(text) for place in span)
            text = text.stylize(Style.from_styles(self.screen.get_component_styles("screen--selection")), start, end)
        if line.fill:
            style += Style.parse(line.fill)
        strips = [self._strip(line.prefix, style), self._strip(text, style).apply_offsets(line.x, line.y)]
        return Strip.join(strips).adjust_cell_length(self.size.width, style.rich_style)

    def get_selection(self, selection: Selection) -> tuple[str, str]:
        """What is selected, without bullets and bars, and with lines as they were before they were wrapped."""
        rows: list[str] = []
        for line in self._lines:
            if line.y == len(rows):
                rows.append("")
            rows[-1] = rows[-1].ljust(line.x) + line.text.plain
        return selection.extract("\n".join(rows)), "\n"

    def action_link(self, href: str) -> None:
        """A link was clicked on."""
        self.post_message(self.LinkClicked(href))

    def action_copy_code(self, number: int) -> None:
        """The word above a block of code was clicked on."""
        self.post_message(self.CodeClicked(self.codes[number]))

    def _strip(self, text: Content, style: Style) -> Strip:
        if not text:
            return Strip([])
        [strip] = Visual.to_strips(self, text, text.cell_length, 1, style, apply_selection=False)
        return strip

    def _wrap(self, width: int, n_kept: int) -> None:
        """Wraps the sections after the first n_kept ones; the width of those has not changed."""
        self._width = width
        if n_kept < len(self._starts):
            del self._lines[self._starts[n_kept] :]
            del self._starts[n_kept:]
        for y in [y for y in self._strips if y >= len(self._lines)]:
            del self._strips[y]
        if not width:
            return
        y = self._lines[-1].y + 1 if self._lines else 0
        for blocks in self._sections[n_kept:]:
            self._starts.append(len(self._lines))
            for block in blocks:
                lines = block.lines(width)
                self._lines += [line._replace(y=y + line.y) for line in lines]
                y += lines[-1].y + 1
