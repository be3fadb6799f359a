"""Markdown that grows, as blocks of text. It knows tokens and blocks, no widgets.

Only the last section of a `Document` is parsed again when text is added, and what is not parsed again keeps its lines.
So a long answer costs no more to extend than a short one. Textual's own Markdown, which has a widget for each block,
took seconds for each piece of a long list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual.content import Content, Span
from textual.style import Style

from vkllm.faces.tui.text_blocks import (
    BLANK,
    QUIET,
    TAB_SIZE,
    Block,
    CodeHeader,
    RuleBlock,
    TableBlock,
    TextBlock,
    code_blocks,
)

_HEADINGS = {"h1": "bold underline $text-primary", "h2": "bold $text-primary"}
_OTHER_HEADING = "bold $text-secondary"
_STYLES = {"em_open": "italic", "strong_open": "bold", "s_open": "strike"}
_CODE_IN_TEXT = "$text-accent on $foreground 7%"
_BULLETS = "•◦▪"
_NEEDS_SPACE = {"heading", "fence", "code_block", "table", "hr"}

# The beginning of some markup, which would be drawn as something else for a moment.
_MARKUP_BEGINS = re.compile(r"^[ \t]*[-=+*_#>|`~:]+[ \t]*\Z", re.MULTILINE)
_CONTROL = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


@dataclass(frozen=True)
class Section:
    """A part that was parsed alone. line: where it begins in the source. kind: of its last block. codes: in it.

    number: of the item that it is, if it is one of a numbered list.
    """

    line: int
    number: int | None
    blocks: list[Block]
    kind: str
    codes: list[str]


class Document:
    """Markdown in sections, which are its outermost blocks and, of lists, the items."""

    def __init__(self) -> None:
        self.sections: list[Section] = []
        self._source = ""

    @property
    def codes(self) -> list[str]:
        """The contents of all blocks of code, in order; the last one may be unfinished."""
        return [code for section in self.sections for code in section.codes]

    def update(self, source: str, *, is_live: bool = False) -> int:
        """Takes the text in place of the one before; how many sections, from the first on, are as they were.

        is_live: it is still being written, so a last line that looks like the beginning of some markup waits.
        """
        source = source.translate(_CONTROL)
        if is_live:
            source = _MARKUP_BEGINS.sub("", source)
        if source == self._source:
            return len(self.sections)
        n_kept = max(len(self.sections) - 1, 0) if source.startswith(self._source) else 0
        if n_kept and self.sections[n_kept].number is None and self.sections[n_kept - 1].number is not None:
            n_kept -= 1  # what follows a numbered item may become the next one
        start, number = (self.sections[n_kept].line, self.sections[n_kept].number) if n_kept else (0, None)
        del self.sections[n_kept:]
        self._source = source
        above = self.sections[-1].kind if n_kept else ""
        walker = _Walker(source.split("\n"), start, above, len(self.codes), number)
        self.sections += walker.sections()
        return n_kept


@cache
def _parser() -> MarkdownIt:
    """HTML is shown as it stands there: a model that writes Set<int> means that."""
    return MarkdownIt("gfm-like", {"html": False})


@dataclass
class _Container:
    """A list item or a quote: what stands before the first line in it, and before the others."""

    first: Content
    rest: Content

    def take(self) -> Content:
        """What stands before the next line."""
        taken, self.first = self.first, self.rest
        return taken


class _Walker:
    """Makes blocks of tokens. A blank line is between them where the source has one, and around those that need it."""

    def __init__(self, lines: list[str], start: int, kind: str, n_codes: int, number: int | None) -> None:
        """lines: of the source; `start` is the first one to read. kind: of the block above, "" if there is none.

        n_codes: blocks of code above. number: of the item that begins at the start, if one of a list does.
        """
        self._lines = lines
        self._start = start
        self._kind = kind
        self._n_codes = n_codes
        self._first_number = number
        self._numbers: list[int | None] = []  # of each open list, what the next item gets; None is a bullet
        self._containers: list[_Container] = []
        self._containers_above: list[_Container] = []
        self._heading = ""
        self._rows: list[list[Content]] | None = None  # of the open table
        self._aligns: list[str] = []

    def sections(self) -> Iterator[Section]:
        """The outermost blocks and, of lists, the items."""
        part: list[Token] = []
        for token in _parser().parse("\n".join(self._lines[self._start :])):
            part.append(token)
            is_item = token.type == "list_item_close" and token.level == 1
            is_block = token.level == 0 and token.nesting != 1 and not token.type.endswith("_list_close")
            if is_item or is_block:
                first = next(token.map[0] for token in part if token.map)
                blocks, codes = self._walk(part)
                number = self._numbers[0] if is_item else None
                yield Section(self._start + first, number and number - 1, blocks, self._kind, codes)
                part = []

    def _walk(self, tokens: list[Token]) -> tuple[list[Block], list[str]]:
        """Blocks, and the code in them."""
        blocks: list[Block] = []
        codes: list[str] = []
        for token in tokens:
            match token.type:
                case "bullet_list_open":
                    self._numbers.append(None)
                case "ordered_list_open":
                    number, self._first_number = self._first_number, None
                    self._numbers.append(int(token.attrs.get("start", 1)) if number is None else number)
                case "bullet_list_close" | "ordered_list_close":
                    self._numbers.pop()
                case "list_item_open":
                    self._containers.append(self._item())
                case "blockquote_open":
                    bar = Content.styled("▌ ", QUIET)
                    self._containers.append(_Container(bar, bar))
                case "list_item_close" | "blockquote_close":
                    self._containers.pop()
                case "heading_open":
                    self._heading = _HEADINGS.get(token.tag, _OTHER_HEADING)
                case "heading_close":
                    self._heading = ""
                case "inline" if self._rows is not None:
                    self._rows[-1].append(_inline(token, "bold" if len(self._rows) == 1 else ""))
                case "inline":
                    blocks += self._gap("heading" if self._heading else "text", token)
                    blocks.append(TextBlock(_inline(token, self._heading), *self._prefixes()))
                case "fence" | "code_block":
                    blocks += self._gap(token.type, token)
                    blocks += self._code(token)
                    codes.append(token.content.removesuffix("\n"))
                case "hr":
                    blocks += self._gap("hr", token)
                    blocks.append(RuleBlock(self._prefixes()[0]))
                case "table_open":
                    blocks += self._gap("table", token)
                    self._rows, self._aligns = [], []
                case "tr_open" if self._rows is not None:
                    self._rows.append([])
                case "th_open":
                    self._aligns.append(str(token.attrs.get("style", "text-align:left")).removeprefix("text-align:"))
                case "table_close" if self._rows is not None:
                    blocks.append(TableBlock(self._rows, self._aligns, *self._prefixes()))
                    self._rows = None
        return blocks, codes

    def _item(self) -> _Container:
        depth, number = len(self._numbers), self._numbers[-1]
        if number is None:
            bullet = f" {_BULLETS[(depth - 1) % len(_BULLETS)]} "
        else:
            bullet = f"{number:>2}. "
            self._numbers[-1] = number + 1
        return _Container(Content.styled(bullet, "$text-primary"), Content(" " * len(bullet)))

    def _prefixes(self) -> tuple[Content, Content]:
        """What stands before the first line of the next block, and before its others."""
        first = BLANK.join([container.take() for container in self._containers])
        return first, BLANK.join([container.rest for container in self._containers])

    def _gap(self, kind: str, token: Token) -> list[Block]:
        """A blank line, if there is to be one above a block of this kind."""
        assert token.map is not None
        above = self._start + token.map[0] - 1
        has_space = above >= 0 and not self._lines[above].strip(" \t>")
        is_first = not self._kind
        needs_space = kind in _NEEDS_SPACE or self._kind in _NEEDS_SPACE
        shared = [c for c in self._containers if any(c is other for other in self._containers_above)]
        self._kind, self._containers_above = kind, list(self._containers)
        if is_first or not (has_space or needs_space):
            return []
        return [TextBlock(BLANK, BLANK.join([container.rest for container in shared]))]

    def _code(self, token: Token) -> Iterator[Block]:
        language = token.info.split()[0] if token.info.split() else ""
        first, rest = self._prefixes()
        yield CodeHeader(language, self._n_codes, first)
        self._n_codes += 1
        yield from code_blocks(token.content.removesuffix("\n"), language, rest)


def _inline(token: Token, style: str) -> Content:
    """Text with its styles. A line that ends in the source ends here: models do not wrap their lines."""
    text: list[str] = []
    spans: list[Span] = []
    opened: list[tuple[int, str | Style]] = []
    length = 0

    def add(part: str) -> None:
        nonlocal length
        part = part.expandtabs(TAB_SIZE)
        text.append(part)
        length += len(part)

    for child in token.children or []:
        match child.type:
            case "code_inline":
                opened.append((length, _CODE_IN_TEXT))
                add(child.content)
                spans.append(Span(opened[-1][0], length, opened.pop()[1]))
            case "softbreak" | "hardbreak":
                add("\n")
            case "link_open" | "image":
                href = child.attrs.get("href", child.attrs.get("src", ""))
                link = Style.from_meta({"@click": f"link({str(href)!r})"}) + Style(underline=True)
                opened.append((length, link))
                if child.type == "image":
                    add(child.content or "image")
                    spans.append(Span(opened[-1][0], length, opened.pop()[1]))
            case opening if opening in _STYLES:
                opened.append((length, _STYLES[opening]))
            case closing if closing.endswith("_close"):
                start, opened_style = opened.pop()
                spans.append(Span(start, length, opened_style))
            case _:
                add(child.content)
    content = Content("".join(text), spans)
    return content.stylize_before(style) if style else content
