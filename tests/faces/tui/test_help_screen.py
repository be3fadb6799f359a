"""F1 lists every key that does something, and none that does nothing."""

from __future__ import annotations

import re

import pytest
from conftest import OpenChat
from textual.binding import Binding

from vkllm.faces.tui.app import ChatApp
from vkllm.faces.tui.chat_screen import ChatScreen
from vkllm.faces.tui.chats_screen import ChatsScreen
from vkllm.faces.tui.dialogs import Confirm
from vkllm.faces.tui.help_screen import HELP
from vkllm.faces.tui.message_view import MessageView
from vkllm.faces.tui.models_screen import ModelsScreen
from vkllm.faces.tui.parameters_screen import ParametersScreen
from vkllm.faces.tui.prompt import Prompt
from vkllm.faces.tui.reading_screen import ReadingScreen

OWNERS = [ReadingScreen, ChatScreen, MessageView, ChatsScreen, ModelsScreen, ParametersScreen, Confirm]
NAMES = {"escape": "esc"}
# Keys of Textual's own that the help tells too.
TEXTUAL = {"ctrl+p", "ctrl+q", "ctrl+c", "ctrl+z", "ctrl+y", "tab"}


def bound() -> set[str]:
    """All keys that are bound, by the names that people know."""
    keys = {"enter", "up", *Prompt.BREAK_KEYS}
    for owner in OWNERS:
        for binding in Binding.make_bindings(owner.BINDINGS):
            keys |= set(binding.key.split(","))
    return {NAMES.get(key, key) for key in keys} | TEXTUAL


def told() -> set[str]:
    """All keys that the help names."""
    cells = [line.split("|")[1] for line in HELP.split("\n") if line.startswith("|") and "---" not in line]
    keys = {key.strip().lower() for cell in cells for key in cell.split(",")} - {"key"}
    names = r"\b((?:Ctrl|Shift|Alt)\+\w+|F\d+|Enter|Esc|Tab|Up|Down|Left|Right|Delete|PageUp|PageDown)\b|`(\w)`"
    return keys | {(one or other).lower() for one, other in re.findall(names, HELP)}


def test_the_help_and_the_keys_agree() -> None:
    assert bound() - told() == set()
    assert told() - bound() == set()


@pytest.mark.asyncio
async def test_textual_s_own_keys_are_there(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        keys = set(scene.app.screen.active_bindings)
        assert {"ctrl+p", "ctrl+q", "ctrl+c"} <= keys
        assert {"ctrl+z", "ctrl+y"} <= keys  # of the prompt
        assert ChatApp.COMMAND_PALETTE_BINDING == "ctrl+p"


@pytest.mark.asyncio
async def test_f1_shows_the_keys_and_scrolls_to_the_last(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.press("f1")
        assert "start a new line" in scene.shown
        await scene.press("end")
        await scene.until(lambda: "twice: quit" in scene.shown and "OSC 52" in scene.shown)
        for key in ("escape", "f1", "q"):
            await scene.press(key)
            assert scene.app.screen is scene.chat
            await scene.press("f1")
