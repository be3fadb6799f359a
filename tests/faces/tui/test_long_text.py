"""Text on the screen: drawn only where it is seen, selected, clicked on, and in the theme's colours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from textual.app import App, ComposeResult
from textual.containers import VerticalScroll
from textual.geometry import Offset
from textual.selection import Selection

from vkllm.faces.tui.long_text import LongText

SOURCE = "# Title\n\n- one two three four five six seven\n- see [here](https://x.y/)\n\n```py\nx = 1\n```\n"


class OneText(App[None]):
    """One text, and what was clicked on in it."""

    CSS = "LongText { height: auto; }"

    def __init__(self, text: LongText) -> None:
        super().__init__()
        self.text = text
        self.clicked: list[str] = []

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield self.text

    def on_long_text_link_clicked(self, event: LongText.LinkClicked) -> None:
        self.clicked.append(event.href)

    def on_long_text_code_clicked(self, event: LongText.CodeClicked) -> None:
        self.clicked.append(event.code)

    @property
    def shown(self) -> list[str]:
        return [strip.text.rstrip() for strip in self.screen._compositor.render_strips()]


@pytest.mark.asyncio
async def test_a_text_can_be_replaced_and_extended_and_takes_the_height_it_needs() -> None:
    app = OneText(LongText("one"))
    async with app.run_test(size=(20, 10)) as pilot:
        assert app.shown[:2] == ["one", ""]
        app.text.show("one\n\ntwo")
        await pilot.pause()
        assert app.shown[:3] == ["one", "", "two"] and app.text.size.height == 3
        app.text.show("three")
        await pilot.pause()
        assert app.shown[:3] == ["three", "", ""] and app.text.size.height == 1


@pytest.mark.asyncio
async def test_a_narrower_terminal_wraps_it_anew() -> None:
    app = OneText(LongText("one two three\n- four five six"))
    async with app.run_test(size=(40, 10)) as pilot:
        assert app.shown[:2] == ["one two three", " • four five six"]
        await pilot.resize_terminal(12, 10)
        await pilot.pause()
        assert app.shown[:4] == ["one two", "three", " • four five", "   six"]


@pytest.mark.asyncio
async def test_plain_text_is_no_markdown() -> None:
    app = OneText(LongText("# a\n  **b**\t[c](d)", is_markdown=False))
    async with app.run_test(size=(40, 5)):
        assert app.shown[:2] == ["# a", "  **b** [c](d)"]


@pytest.mark.asyncio
async def test_a_selection_is_marked_and_has_neither_bullets_nor_the_ends_of_wrapped_lines() -> None:
    app = OneText(LongText(SOURCE))
    async with app.run_test(size=(20, 20)) as pilot:
        assert app.text.get_selection(Selection(None, None))[0] == (
            "Title\n\none two three four five six seven\nsee here\n\n\nx = 1"
        )
        await pilot.mouse_down(offset=Offset(7, 2))
        await pilot.hover(offset=Offset(11, 3))
        await pilot.mouse_up(offset=Offset(11, 3))
        assert app.screen.get_selected_text() == "two three four five"
        segments = [segment for strip in app.screen._compositor.render_strips()[2:4] for segment in strip]
        usual = segments[0].style.bgcolor
        marked = [segment.text for segment in segments if segment.style.bgcolor != usual]
        assert "".join(marked) == "two threefour five"


@pytest.mark.asyncio
async def test_links_and_the_word_above_code_can_be_clicked() -> None:
    app = OneText(LongText(SOURCE))
    async with app.run_test(size=(50, 20)) as pilot:
        y = next(y for y, line in enumerate(app.shown) if "see here" in line)
        await pilot.click(offset=(app.shown[y].index("here"), y))
        y = next(y for y, line in enumerate(app.shown) if "copy" in line)
        await pilot.click(offset=(app.shown[y].index("copy") + 1, y))
        await pilot.pause()
        assert app.clicked == ["https://x.y/", "x = 1"]


@pytest.mark.asyncio
async def test_another_theme_has_other_colours() -> None:
    app = OneText(LongText("# Title"))
    async with app.run_test(size=(20, 5)) as pilot:
        before = app.screen._compositor.render_strips()[0]
        app.register_theme(replace(app.current_theme, name="red", primary="#ff0000"))
        app.theme = "red"
        await pilot.pause()
        assert list(before) != list(app.screen._compositor.render_strips()[0])


@pytest.mark.asyncio
async def test_only_lines_that_are_seen_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    original = LongText._drawn
    monkeypatch.setattr(
        LongText, "_drawn", lambda self, line, style: drawn.append(line.text.plain) or original(self, line, style)
    )
    source = "\n\n".join(f"line {number}" for number in range(500))
    app = OneText(LongText(source))
    async with app.run_test(size=(20, 10)) as pilot:
        assert app.text.size.height == 999
        assert len(drawn) <= 20
        app.text.parent.scroll_end(animate=False)  # type: ignore[union-attr]
        await pilot.pause()
        drawn.clear()
        app.text.show(source + "\n\nmore")
        app.text.parent.scroll_end(animate=False)  # type: ignore[union-attr]
        await pilot.pause()
        assert "more" in drawn and len(drawn) < 10  # the lines above it were drawn before


@pytest.mark.asyncio
async def test_wide_letters_emoji_and_letters_from_right_to_left_fill_their_cells() -> None:
    text = "日本語のテキスト 🙂👩‍👩‍👧 e\u0301 שלום עולם مرحبا\n| 日本 | 🙂 |\n|---|---|\n| a | b |"
    app = OneText(LongText(text))
    async with app.run_test(size=(16, 12)) as pilot:
        for width in (16, 9, 3):
            await pilot.resize_terminal(width, 12)
            await pilot.pause()
            assert all(strip.cell_length == width for strip in app.screen._compositor.render_strips())
