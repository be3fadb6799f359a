"""The list of chats, and what is remembered from one start to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import OpenChat, Scene
from textual.widgets import Input, OptionList

from vkllm.faces.tui.chats_screen import ChatsScreen

pytestmark = pytest.mark.asyncio


async def opened_list(scene: Scene) -> None:
    await scene.press("f2")
    await scene.until(lambda: isinstance(scene.app.screen, ChatsScreen))


async def answer_dialog(scene: Scene, text: str) -> None:
    await scene.until(lambda: not isinstance(scene.app.screen, ChatsScreen))
    scene.app.screen.query_one(Input).value = text
    await scene.press("enter")


async def test_a_chat_is_found_again_at_the_next_start(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("Where is Paris?")
    async with open_chat() as scene:
        assert scene.texts == []
        await opened_list(scene)
        assert "Where is Paris?" in scene.shown
        await scene.press("enter")
        await scene.until(lambda: scene.texts == ["Where is Paris?", "You said: Where is Paris? (answer 1)"])
        await scene.ask("And Rome?")
        assert len(scene.llm.asked[-1][0]) == 3


async def test_search_rename_export_and_delete(
    open_chat: OpenChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_chat() as scene:
        await scene.ask("apples")
        await scene.press("ctrl+n")
        await scene.ask("pears")
        await opened_list(scene)
        await scene.type("appl")
        await scene.until(lambda: len(scene.app.screen.query_one(OptionList).options) == 1)
        [found] = scene.app.screen.query_one(OptionList).options
        assert str(found.prompt).split()[0] == "apples"
        await scene.press("ctrl+r")
        await answer_dialog(scene, "Fruit")
        await scene.until(lambda: [chat.title for chat in scene.store.chats("appl")] == ["Fruit"])
        await scene.press("ctrl+e")
        await answer_dialog(scene, "fruit.md")
        await scene.until((tmp_path / "fruit.md").exists)
        text = (tmp_path / "fruit.md").read_text()
        assert text.startswith("# Fruit\n\n## You\n\napples\n")
        await scene.press("ctrl+e")  # a file that is there is not overwritten
        await answer_dialog(scene, "fruit.md")
        await scene.until(lambda: any("there is such a file" in told for told in scene.told))
        await scene.press("ctrl+d", "n")
        assert len(scene.store.chats()) == 2
        await scene.press("ctrl+d", "y")
        await scene.until(lambda: [chat.title for chat in scene.store.chats()] == ["pears"])
        await scene.press("escape")
        await scene.until(lambda: scene.app.screen is scene.chat)
        assert scene.texts[0] == "pears"


async def test_the_chat_that_is_open_can_be_deleted_in_the_list(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("apples")
        await opened_list(scene)
        await scene.press("ctrl+d", "y")
        await scene.until(lambda: scene.store.chats() == [])
        await scene.press("escape")
        await scene.until(lambda: scene.texts == [] and scene.app.screen is scene.chat)
        await scene.ask("pears")
        assert [chat.title for chat in scene.store.chats()] == ["pears"]


async def test_leaving_a_chat_in_mid_answer_keeps_the_partial_answer(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.step_s = 0.01
        await scene.ask("endless", waits=False)
        await scene.until(lambda: "word" in scene.texts[-1])
        await scene.press("ctrl+n")
        await scene.until(lambda: scene.texts == [])
        [chat] = scene.store.chats()
        last = scene.store.messages(chat.id)[-1]
        assert last.state == "stopped" and "word" in last.content


async def test_the_palette_knows_every_command_and_the_theme_is_remembered(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        commands = {command.title: command for command in scene.app.get_system_commands(scene.chat)}
        assert {"New chat", "Rename chat", "Export chat", "Choose model", "Parameters", "Theme"} <= set(commands)
        await scene.ask("apples")
        await scene.press("ctrl+p")
        await scene.type("rename")
        await scene.until(lambda: "Give this chat another name" in scene.shown)
        await scene.press("enter")
        await scene.until(lambda: "Rename chat" in scene.shown)
        scene.app.screen.query_one(Input).value = "Fruit"
        await scene.press("enter")
        await scene.until(lambda: "Fruit" in scene.shown)
        scene.app.theme = "nord"
    async with open_chat() as scene:
        assert scene.app.theme == "nord"


async def test_what_cannot_be_kept_is_not_lost_from_the_prompt(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("apples")
        scene.store.close()
        scene.chat.prompt.set_text("pears")
        await scene.press("enter")
        await scene.until(lambda: any("cannot be written" in told for told in scene.told))
        assert scene.chat.prompt.text == "pears"
        assert scene.texts[0] == "apples"


@pytest.mark.parametrize("width", [40, 60, 79, 80, 106, 120, 200])
async def test_each_chat_has_a_row_at_every_width(open_chat: OpenChat, width: int) -> None:
    async with open_chat(size=(width, 24)) as scene:
        for number in range(3):
            scene.store.new_chat(f"{number} a title that is too long for any row of any terminal 日本語 " * 3, "", {})
        await opened_list(scene)
        rows = [number for number, line in enumerate(scene.shown.split("\n")) if "a title" in line]
        assert rows == list(range(rows[0], rows[0] + 3))
        await scene.pilot.resize_terminal(70, 24)
        await scene.until(lambda: sum("a title" in line and ":" in line for line in scene.shown.split("\n")) == 3)


async def test_the_context_of_a_chat_that_is_opened_again_is_counted(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("one two three")
        await scene.press("ctrl+n")
        await scene.until(lambda: "context 0/2048" in scene.shown)
        await opened_list(scene)
        await scene.press("enter")
        await scene.until(lambda: "context ~10/2048" in scene.shown)


async def test_every_theme_draws_the_chat(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("code")
        looks = set()
        for theme in scene.app.available_themes:
            scene.app.theme = theme
            await scene.pilot.pause()
            strips = scene.app.screen._compositor.render_strips()
            assert "def double(x):" in scene.shown
            looks.add(str([segment.style for strip in strips for segment in strip]))
        assert len(looks) == len(scene.app.available_themes)
