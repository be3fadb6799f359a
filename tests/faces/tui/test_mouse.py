"""The mouse: everything that can be seen can be clicked."""

from __future__ import annotations

import fake_llm
import pytest
from conftest import OpenChat
from textual import events
from textual.widgets import Button, Collapsible, Input
from textual.widgets._footer import FooterKey

from vkllm.faces.tui.chats_screen import ChatsScreen
from vkllm.faces.tui.models_screen import ModelsScreen
from vkllm.faces.tui.parameters_screen import ParametersScreen
from vkllm.faces.tui.prompt import Prompt
from vkllm.faces.tui.session import KnownModel

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [KnownModel("tiny", "", 98_362_432, "/models/tiny.gguf"), KnownModel("other", "", 4_000_000, "/o.gguf")]
    monkeypatch.setattr("vkllm.faces.tui.session.Session.known_models", lambda self, recent: found)


async def test_a_click_chooses_a_message_and_another_one_the_prompt(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("One")
        await scene.click("You said: One")
        assert scene.app.focused is scene.views[1]
        await scene.pilot.click(scene.views[0])
        assert scene.app.focused is scene.views[0]
        await scene.click("Ask something")
        assert isinstance(scene.app.focused, Prompt)


async def test_the_keys_at_the_bottom_are_buttons(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        for key, screen in (("f2", ChatsScreen), ("f3", ModelsScreen), ("f4", ParametersScreen)):
            await scene.pilot.click(next(item for item in scene.app.screen.query(FooterKey) if item.key == key))
            await scene.until(lambda: isinstance(scene.app.screen, screen))  # noqa: B023
            await scene.until(lambda: scene.app.screen.query(FooterKey))
            await scene.pilot.click(next(item for item in scene.app.screen.query(FooterKey) if item.key == "escape"))
            await scene.until(lambda: scene.app.screen is scene.chat)


async def test_a_click_opens_a_chat_and_loads_a_model(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        for question in ("apples", "pears"):
            await scene.press("ctrl+n")
            await scene.ask(question)
        await scene.press("f2")
        await scene.until(lambda: "Search titles" in scene.shown and "apples" in scene.shown)
        await scene.click("apples")
        await scene.until(lambda: scene.texts[:1] == ["apples"] and scene.app.screen is scene.chat)
        await scene.press("f3")
        await scene.until(lambda: "other" in scene.shown)
        await scene.click("other")
        await scene.until(lambda: scene.chat.session.llm is not None and scene.llm.path.stem == "other")


async def test_the_buttons_of_an_error_and_of_a_question_are_clicked(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.fails_after = 1
        await scene.ask("Hi", waits=False)
        await scene.until(lambda: scene.notice is not None and "Try again" in scene.shown)
        scene.llm.fails_after = None
        await scene.pilot.click(scene.notice.query(Button).first())  # type: ignore[union-attr]
        await scene.until(lambda: scene.texts[-1].startswith("You said: Hi (answer 2)") and scene.notice is None)
        await scene.pilot.click(scene.views[-1])
        await scene.press("d")
        await scene.until(lambda: "Delete this answer" in scene.shown)
        await scene.click("Yes (y)")
        await scene.until(lambda: len(scene.texts) == 2 and "answer 2" not in scene.shown)


async def test_thoughts_code_and_links_are_clicked(open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fake_llm.ANSWERS, "link", "See [the page](https://example.org/) for it.")
    async with open_chat(size=(80, 40)) as scene:
        await scene.ask("think")
        await scene.click("Thoughts")
        await scene.until(lambda: "Two and two" in scene.shown and not scene.chat.query_one(Collapsible).collapsed)
        await scene.ask("code")
        await scene.until(lambda: "ls -l" in scene.shown)
        column, line = scene.place("python")
        await scene.pilot.click(offset=(scene.shown.split("\n")[line].index("copy") + 1, line))
        await scene.until(lambda: scene.app.clipboard == "def double(x):\n    return 2 * x")
        assert column < 10
        await scene.ask("link")
        await scene.click("the page")
        await scene.until(lambda: scene.app.clipboard == "https://example.org/")


async def test_the_wheel_scrolls_and_a_growing_answer_does_not_scroll_back(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.step_s = 0.002
        await scene.ask("endless", waits=False)
        await scene.until(lambda: scene.chat.conversation.max_scroll_y > 20)
        conversation = scene.chat.conversation
        assert conversation.is_vertical_scroll_end
        while conversation.scroll_offset.y >= conversation.max_scroll_y - 5:  # turned until it has been seen to scroll
            await scene.pilot._post_mouse_events([events.MouseScrollUp], conversation, offset=(10, 5), button=0)
        await scene.pilot.pause(0.5)
        place = conversation.scroll_offset.y
        await scene.pilot.pause(0.5)
        assert conversation.scroll_offset.y == place


async def test_a_field_of_the_parameters_is_clicked(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.press("f4")
        await scene.until(lambda: isinstance(scene.app.screen, ParametersScreen))
        await scene.pilot.click("#top_k")
        await scene.press("7", "ctrl+s")
        await scene.until(lambda: scene.app.screen is scene.chat)
        assert scene.chat.parameters.sampling == {"top_k": 7}
        assert not scene.app.screen.query(Input)


async def test_a_text_that_is_selected_is_copied_with_ctrl_c_and_nothing_else_happens(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("One")
        column, line = scene.place("You said: One")
        await scene.pilot.mouse_down(offset=(column, line))
        await scene.pilot.hover(offset=(column + 7, line))
        await scene.pilot.mouse_up(offset=(column + 7, line))
        await scene.press("ctrl+c")
        assert scene.app.clipboard == "You said"
        assert not any("quits" in told for told in scene.told)
        await scene.press("i")
        await scene.type("typed")
        await scene.press("shift+home", "ctrl+c")
        assert scene.app.clipboard == "typed" and scene.chat.prompt.text == "typed"
