"""Notifications lie over nothing that is typed into or chosen from."""

from __future__ import annotations

import pytest
from conftest import OpenChat, Scene
from textual.geometry import Region
from textual.screen import Screen
from textual.widgets._toast import Toast

from vkllm.faces.tui.dialogs import AskText, Confirm
from vkllm.faces.tui.session import KnownModel

pytestmark = pytest.mark.asyncio

SIZES = [(60, 20), (80, 24), (120, 40)]
LONG = "/a/long/path/of/a/file: the chat cannot be written (No space left on device); choose another place for it"


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [KnownModel(name, "What it is", 98_362_432, f"/models/{name}.gguf") for name in ("smollm2", "spilling")]
    monkeypatch.setattr("vkllm.faces.tui.session.Session.known_models", lambda self, recent: found)


def drawn(screen: Screen[object], selector: str) -> list[Region]:
    """What can be seen of widgets."""
    visible = screen._compositor.visible_widgets
    regions = [visible[part][0].intersection(visible[part][1]) for part in screen.query(selector) if part in visible]
    return [region for region in regions if region.area]


async def assert_toasts_cover_nothing(scene: Scene) -> None:
    screen = scene.app.screen
    for number in range(4):
        screen.notify(f"{number} {LONG}", severity="error", markup=False, timeout=600)
    await scene.until(lambda: drawn(screen, "Toast"))
    await scene.until(lambda: len(screen.query(Toast)) == 4)
    toasts = drawn(screen, "Toast")
    fields = drawn(screen, "Input, TextArea, OptionList, Button, FooterKey, #about, .problem")
    assert toasts and (fields or screen.query("HelpScreen LongText"))
    for toast in toasts:
        assert toast in screen.region
        for field in fields:
            assert not toast.overlaps(field), (toast, field)


@pytest.mark.some(3)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("key", ["", "f1", "f2", "f3", "f4"])
async def test_toasts_cover_no_field_of_the_chat_and_of_its_screens(
    open_chat: OpenChat, key: str, size: tuple[int, int]
) -> None:
    async with open_chat(size=size, notifications=True) as scene:
        if key:
            await scene.ask("code")
            await scene.press(key)
            await scene.until(lambda: scene.app.screen is not scene.chat)
        else:
            scene.chat.prompt.set_text("a line\n" * 30)  # the prompt at its highest
        await scene.pilot.pause()
        await assert_toasts_cover_nothing(scene)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("dialog", [AskText("Rename chat", "A title"), Confirm("Delete “A title” for good?")])
async def test_toasts_cover_no_small_question(
    open_chat: OpenChat, size: tuple[int, int], dialog: Screen[object]
) -> None:
    async with open_chat(size=size, notifications=True) as scene:
        again = AskText("Rename chat", "A title") if isinstance(dialog, AskText) else Confirm("Delete it for good?")
        await scene.app.push_screen(again)
        await assert_toasts_cover_nothing(scene)
