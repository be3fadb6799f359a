"""Control characters and markup in what models, files and errors say: shown as text, or not at all."""

from __future__ import annotations

from pathlib import Path

import fake_llm
import pytest
from conftest import OpenChat, Scene
from rich.segment import Segment
from textual.color import Color

from vkllm import VkllmError
from vkllm.faces.tui.cells import at_both_ends, cut, padded
from vkllm.faces.tui.printable import PrintableLines, one_line, without_controls
from vkllm.faces.tui.session import KnownModel

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\x08\x7f\u202eturned\u2066"
BARE = "[31mred]0;title2Jturned"  # what is left of it
MARKUP = "[red]r[/red] [link=https://example.org]l[/link] [@click=app.quit]q[/] [$x] [/] [bold"


def test_control_characters_go_and_breaks_become_blanks_on_one_line() -> None:
    assert one_line(f"a\nb\tc\r\n{ESCAPES}") == f"a b c  {BARE}"
    assert one_line("日本語 שלום ñ 🙂") == "日本語 שלום ñ 🙂"
    assert without_controls(f"a\n\tb{ESCAPES}") == f"a\n\tb{BARE}"
    assert cut(f"{ESCAPES}", 6) == "[31mr…" and padded("a\nb", 5) == "a b  "
    assert at_both_ends("a\x1b[2J", "b\nc", 12) == "a[2J     b c"


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
def test_no_control_character_is_drawn(code: int) -> None:
    [segment] = PrintableLines().apply([Segment(f"a{chr(code)}b")], Color(0, 0, 0))
    assert segment.text == "ab"


def assert_clean(scene: Scene) -> None:
    """No character that is drawn controls the terminal."""
    strips = scene.app.screen._compositor.render_strips()
    text = "".join(segment.text for strip in strips for segment in strip)
    assert not [char for char in text if ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or char in "\u202e\u2066"]


@pytest.mark.asyncio
async def test_answers_and_questions_titles_and_errors_draw_no_control_characters(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = f"{ESCAPES} `{ESCAPES}` [{ESCAPES}](http://x/{ESCAPES})\n\n```{ESCAPES}\n{ESCAPES}\n```\n\n| {ESCAPES} |\n"
    answer += "| --- |\n"
    question = f"say {ESCAPES}"
    monkeypatch.setitem(fake_llm.ANSWERS, question, f"<think>{ESCAPES}</think>{answer}")
    async with open_chat(size=(80, 50), notifications=True) as scene:
        await scene.ask(question)
        assert scene.shown.count(BARE) >= 5
        assert_clean(scene)
        scene.store.rename_chat(scene.chat.chat.id, f"{ESCAPES}\n{MARKUP}")  # type: ignore[union-attr]
        await scene.press("f2")
        await scene.until(lambda: "[red]" in scene.shown)
        assert "[red]r[/red]" in scene.shown
        assert_clean(scene)
        await scene.press("ctrl+d")
        await scene.until(lambda: "for good?" in scene.shown)
        assert_clean(scene)
        await scene.press("n", "escape")
        await scene.until(lambda: scene.app.screen is scene.chat and f" {BARE}" in scene.shown.split("\n")[0])
        assert_clean(scene)
        scene.llm.fails_after, scene.llm.error = 0, VkllmError(f"{ESCAPES} {MARKUP}")
        await scene.ask("Hi", waits=False)
        await scene.until(lambda: scene.notice is not None)
        await scene.until(lambda: "[@click=app.quit]" in scene.shown)
        assert_clean(scene)
        scene.chat.notify(f"{ESCAPES} {MARKUP}", markup=False)
        await scene.until(lambda: scene.shown.count("[red]r[/red]") > 1)
        assert_clean(scene)


@pytest.mark.asyncio
async def test_markup_is_shown_as_text_wherever_it_comes_from(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake_llm.ANSWERS, "say", MARKUP)
    async with open_chat(size=(100, 40), sampling={"stop": [MARKUP]}) as scene:
        assert MARKUP[:60] in scene.shown  # the line of parameters below the prompt, which is cut
        await scene.ask("say")
        await scene.until(lambda: MARKUP in scene.shown.split("╭")[0])
        await scene.ask(MARKUP)
        await scene.until(lambda: scene.shown.count(MARKUP[:60]) >= 3)
        await scene.click("[@click=app.quit]")
        assert not scene.app._exit
        scene.store.rename_chat(scene.chat.chat.id, MARKUP)  # type: ignore[union-attr]
        await scene.press("f2")
        await scene.until(lambda: "[red]r[/red] [link=https://example.org]l[/link]" in scene.shown)
        await scene.press("ctrl+d")
        await scene.until(lambda: "Delete “[red]r[/red]" in scene.shown)


@pytest.mark.asyncio
async def test_names_of_models_and_files_draw_no_control_characters(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [KnownModel(f"/models/[red]{ESCAPES}\n.gguf", f"{ESCAPES}\n{MARKUP}", 98_362_432, "/models/x.gguf")]
    monkeypatch.setattr("vkllm.faces.tui.session.Session.known_models", lambda self, recent: known)
    async with open_chat(size=(120, 40)) as scene:
        scene.llm.path = Path(f"/models/{ESCAPES}\n[bold].gguf")
        scene.llm.device_name = f"{ESCAPES} card"
        scene.chat._show_lines()
        await scene.pilot.pause()
        assert scene.shown.count(BARE) == 2
        assert_clean(scene)
        await scene.press("f3")
        await scene.until(lambda: "93.8 MiB" in scene.shown)
        assert BARE[:10] in scene.shown and MARKUP in scene.shown
        assert_clean(scene)


@pytest.mark.asyncio
async def test_what_is_copied_holds_no_keys_for_a_shell(open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"ls\x1b[201~\n{ESCAPES}"
    monkeypatch.setitem(fake_llm.ANSWERS, "say", code)
    async with open_chat() as scene:
        await scene.ask("say")
        scene.chat.action_copy_answer()
        assert scene.app.clipboard == f"ls[201~\n{BARE}"
