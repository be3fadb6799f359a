"""What can be seen takes keys: also those that come in one burst, before a screen that they open is drawn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conftest import OpenChat
from textual import events
from textual.widgets import Input, TextArea

from vkllm.faces.tui import session
from vkllm.faces.tui.chats_screen import ChatsScreen
from vkllm.faces.tui.help_screen import HelpScreen
from vkllm.faces.tui.models_screen import ModelsScreen
from vkllm.faces.tui.parameters_screen import ParametersScreen
from vkllm.faces.tui.session import KnownModel

pytestmark = pytest.mark.asyncio

MODELS = [KnownModel(name, "", 98_362_432, f"/models/{name}.gguf") for name in ("tiny", "other", "third")]


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vkllm.faces.tui.session.known_models", lambda recent: MODELS)


async def test_f2_and_enter_at_once_open_the_chosen_chat(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("apples")
        await scene.press("ctrl+n")
        scene.press_at_once("f2", "enter", "x")
        await scene.until(lambda: scene.texts == ["apples", "You said: apples (answer 1)"])
        await scene.until(lambda: scene.chat.prompt.text == "x")
        assert scene.app.screen is scene.chat


async def test_a_search_typed_at_once_finds_before_enter_opens(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        for question in ("apples", "pears", "plums"):
            await scene.press("ctrl+n")
            await scene.ask(question)
        await scene.press("ctrl+n")
        scene.press_at_once("f2", *"appl", "enter")
        await scene.until(lambda: scene.texts[:1] == ["apples"])
        assert scene.chat.prompt.text == ""


async def test_a_chat_is_renamed_and_another_deleted_in_one_burst(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("apples")
        await scene.press("ctrl+n")
        await scene.ask("pears")
        scene.press_at_once("f2", "down", "ctrl+r", "end", *" pie", "enter", "up", "ctrl+d", "y", "escape", *"ok")
        await scene.until(lambda: [chat.title for chat in scene.store.chats()] == ["apples pie"])
        await scene.until(lambda: scene.chat.prompt.text == "ok")


async def test_a_burst_fills_fields_of_parameters(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.press_at_once("f4", *"0.25", "tab", *"50", "ctrl+s", *"next")
        await scene.until(lambda: scene.chat.parameters.sampling == {"temperature": 0.25, "max_tokens": 50})
        await scene.until(lambda: scene.chat.prompt.text == "next")


async def test_a_paste_right_after_a_key_goes_where_the_key_leads(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.press_at_once("f4", "shift+tab")
        scene.app.post_message(events.Paste("Be short"))
        await scene.until(lambda: isinstance(scene.app.screen, ParametersScreen) and scene.app.keys.is_idle)
        assert scene.app.screen.query_one("#system", TextArea).text == "Be short"
        assert scene.chat.prompt.text == ""


@pytest.mark.parametrize("moves", [0, 1, 2])
async def test_a_model_is_chosen_before_the_list_is_there(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    async with open_chat() as scene:
        found = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(recent: list[str]) -> list[KnownModel]:
            asyncio.run_coroutine_threadsafe(found.wait(), loop).result(60)
            return MODELS

        monkeypatch.setattr(session, "known_models", slow)
        scene.press_at_once("f3", *"t", *["down"] * moves, "enter")
        await scene.until(lambda: isinstance(scene.app.screen, ModelsScreen) and scene.app.keys.is_idle)
        assert scene.app.screen.query_one(Input).value == "t"
        found.set()
        chosen = ["tiny", "other", "third"][moves]
        await scene.until(lambda: scene.app.screen is scene.chat and scene.chat.session.llm is not None)
        assert scene.llm.path.stem == chosen


@pytest.mark.parametrize(
    ("key", "screen"), [("f1", HelpScreen), ("f2", ChatsScreen), ("f3", ModelsScreen), ("f4", ParametersScreen)]
)
async def test_every_screen_is_left_by_the_key_after_the_one_that_opens_it(
    open_chat: OpenChat, key: str, screen: type
) -> None:
    async with open_chat() as scene:
        scene.press_at_once(key, "escape", "a", key, key, "b", key)
        await scene.until(lambda: isinstance(scene.app.screen, screen) and scene.app.keys.is_idle)
        assert len(scene.app.screen_stack) == 3
        assert scene.chat.prompt.text == "ab"


async def test_keys_on_messages_and_in_questions_come_in_one_burst(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("apples")
        await scene.ask("pears")
        scene.press_at_once("up", "up", "e", "end", *" and plums", "enter")
        await scene.until(lambda: len(scene.texts) == 4 and scene.texts[2] == "pears and plums")
        await scene.until(lambda: not scene.chat.is_answering)
        scene.press_at_once("up", "d", "y", *"ok")
        await scene.until(lambda: scene.chat.prompt.text == "ok")
        assert scene.texts[2:] == ["pears and plums"]


async def test_keys_before_the_first_screen_is_there_go_to_the_prompt(open_chat: OpenChat, tmp_path: Path) -> None:
    from fake_llm import FakeFits, FakeLLM

    from vkllm.faces.chat.store import ChatStore
    from vkllm.faces.tui.app import ChatApp, ChatOptions

    app = ChatApp(ChatOptions(model="tiny"), ChatStore(tmp_path / "early.db"), FakeLLM, FakeFits())  # type: ignore[arg-type]
    for key in "hello":
        app.simulate_key(key)
    async with app.run_test() as pilot:
        while not app.keys.is_idle or app.session.llm is None:
            await pilot.pause(0.01)
        assert app.screen.query_one("#prompt", TextArea).text == "hello"
    app.session.close()


async def test_a_screen_that_does_not_come_to_its_keys_does_not_take_the_later_ones_with_it(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vkllm.faces.tui.key_order._PATIENCE_S", 0.05)
    async with open_chat() as scene:
        hangs = asyncio.Event()
        scene.chat.call_later(hangs.wait)
        scene.press_at_once(*"abc")
        while scene.chat.prompt.text != "abc":
            await asyncio.sleep(0.01)
        hangs.set()
