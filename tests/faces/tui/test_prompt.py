"""Where questions are typed: fast, in every script, and without losing a letter."""

from __future__ import annotations

import math

import pytest
from conftest import OpenChat
from textual import events

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("key", ["ctrl+j", "shift+enter", "alt+enter"])
async def test_keys_that_come_at_once_stay_in_order(open_chat: OpenChat, key: str) -> None:
    async with open_chat() as scene:
        for one in ("a", key, "b", key, "c"):
            scene.app.simulate_key(one)
        await scene.until(lambda: len(scene.chat.prompt.text) == 5)
        assert scene.chat.prompt.text == "a\nb\nc"


async def test_what_is_typed_right_after_enter_is_the_next_question(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        for one in ("a", "b", "enter", "c", "d"):
            scene.app.simulate_key(one)
        await scene.until(lambda: len(scene.texts) == 2 and scene.chat.prompt.text == "cd")
        assert scene.texts[0] == "ab"
        scene.llm.gate.clear()
        await scene.press("enter")
        await scene.until(lambda: scene.chat.is_answering)
        for one in ("e", "enter", "f"):  # it cannot be sent yet, so it comes back
            scene.app.simulate_key(one)
        await scene.until(lambda: scene.chat.prompt.text == "ef")
        scene.llm.gate.set()


@pytest.mark.parametrize(
    "text", ["日本語です。", "🙂👩‍👩‍👧🇩🇪", "שלום עולם مرحبا", "e\u0301 ñ ß", "\t- a\n\t\tb", "[b]no markup[/b] $x"]
)
async def test_every_script_is_typed_sent_shown_and_kept(open_chat: OpenChat, text: str) -> None:
    async with open_chat() as scene:
        scene.app.post_message(events.Paste(text))
        await scene.until(lambda: scene.chat.prompt.text == text)
        await scene.press("enter")
        await scene.until(lambda: len(scene.texts) == 2 and not scene.chat.is_answering)
        assert scene.llm.asked[0][0] == [{"role": "user", "content": text}]
        assert scene.store.messages(scene.chat.chat.id)[0].content == text  # type: ignore[union-attr]
        for size in ((120, 40), (60, 20), (30, 12), (80, 24)):
            await scene.pilot.resize_terminal(*size)
            await scene.until(lambda: scene.app.size == size)  # noqa: B023
            assert all(strip.cell_length == size[0] for strip in scene.app.screen._compositor.render_strips())
        await scene.press("f2")
        await scene.until(lambda: "Search titles" in scene.shown)
        await scene.press("enter")
        await scene.until(lambda: scene.app.screen is scene.chat)


async def test_the_terminal_changes_its_size_while_an_answer_comes(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.step_s = 0.002
        await scene.ask("endless", waits=False)
        for size in ((120, 40), (40, 10), (20, 6), (200, 60), (1, 1), (80, 24)):
            await scene.pilot.resize_terminal(*size)
            n_words = scene.texts[-1].count("word")
            await scene.until(lambda: scene.texts[-1].count("word") > n_words)  # noqa: B023
        assert scene.chat.conversation.is_vertical_scroll_end
        assert "word word" in scene.shown
        scene.llm.gate_at = 0
        await scene.press("escape")
        await scene.until(lambda: not scene.chat.is_answering)


async def test_up_leads_to_the_messages_only_from_the_first_letter(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("One")
        await scene.type("ab")
        await scene.press("up")  # to the beginning of the line
        assert scene.app.focused is scene.chat.prompt
        await scene.press("up")
        assert scene.app.focused is scene.views[-1]
        await scene.press("i")
        assert scene.app.focused is scene.chat.prompt and scene.chat.prompt.text == "ab"


async def test_what_was_typed_can_be_undone(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.chat.prompt.history.checkpoint_timer = math.inf  # letters are one edit, however slowly they come
        await scene.type("ab")
        await scene.press("ctrl+z")
        assert scene.chat.prompt.text == ""
        await scene.press("ctrl+y")
        assert scene.chat.prompt.text == "ab"
