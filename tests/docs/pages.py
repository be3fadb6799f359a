"""What README.md and the pages in docs/ hold: code, expected output, links, headings. It runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A fenced block. line: of its first line of code, from 1. output: of the `text` block right behind it, if any.

    not_run: why tests leave it out, as a comment right before it says.
    """

    page: Path
    line: int
    language: str
    code: str
    output: str | None
    not_run: str | None

    @property
    def where(self) -> str:
        """Such as docs/run.md:12."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass
class Page:
    """One page. codes: what stands in backticks in its text. anchors: of its headings, as GitHub makes them."""

    path: Path
    snippets: list[Snippet] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)


@cache
def read(path: Path) -> Page:
    """Reads a page."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text())
    page = Page(path)
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        is_output = token.info == "text" and before is not None and before.type == "fence"
        if token.type == "fence" and not is_output:
            page.snippets.append(_snippet(path, before, token, after))
        elif token.type == "inline":
            children = token.children or []
            page.links += [str(child.attrGet("href") or child.attrGet("src")) for child in children if _is_link(child)]
            page.codes += [child.content for child in children if child.type == "code_inline"]
            if before is not None and before.type == "heading_open":
                page.anchors.append(_anchor("".join(child.content for child in children)))
    return page


def _snippet(path: Path, before: Token | None, token: Token, after: Token | None) -> Snippet:
    assert token.map is not None
    marker = NOT_RUN.fullmatch(before.content.strip()) if before is not None and before.type == "html_block" else None
    output = after.content if after is not None and after.type == "fence" and after.info == "text" else None
    return Snippet(path, token.map[0] + 2, token.info, token.content, output, marker[1] if marker else None)


def _is_link(token: Token) -> bool:
    return token.type in ("link_open", "image")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
