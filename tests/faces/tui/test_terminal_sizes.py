"""Terminals of every size: old ones, large ones, a Steam Deck's, and ones that are too small for anything."""

from __future__ import annotations

import itertools

import pytest
from conftest import OpenChat
from textual.widgets import Input, OptionList, TextArea
from textual.widgets._footer import FooterKey

from vkllm.faces.tui.session import KnownModel

pytestmark = pytest.mark.asyncio

USUAL = [(80, 24), (120, 40), (160, 50), (106, 40), (60, 20), (200, 60)]
TOO_SMALL = [(1, 1), (20, 6), *(pytest.param(size, marks=pytest.mark.with_all) for size in ((2, 2), (10, 3), (30, 10)))]


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [KnownModel(name, "What it is", 98_362_432, f"/models/{name}.gguf") for name in ("smollm2", "spilling")]
    monkeypatch.setattr("vkllm.faces.tui.session.Session.known_models", lambda self, recent: found)


@pytest.mark.some(3)
@pytest.mark.parametrize("size", USUAL, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("key", ["f1", "f2", "f3", "f4"])
async def test_nothing_lies_outside_or_on_top_of_something_else(
    open_chat: OpenChat, key: str, size: tuple[int, int]
) -> None:
    async with open_chat(size=size) as scene:
        await scene.ask("code")
        await scene.press(key)
        await scene.until(lambda: scene.app.screen is not scene.chat)
        await scene.pilot.pause(0.1)
        screen = scene.app.screen
        parts = [part for part in screen.query("Input, OptionList, TextArea, Label, #about") if part.size.area]
        if key in ("f2", "f3", "f4"):
            assert {type(part) for part in parts} & {Input, TextArea, OptionList}
            assert [item.description for item in screen.query(FooterKey)][-1] in ("Back", "Cancel")
            parts += [item for item in screen.query(FooterKey) if item.size.area]
        assert parts or key == "f1"
        for part in parts:
            assert part.region in screen.region
        seen = {part: screen.find_widget(part).visible_region for part in parts}  # what scrolling leaves of each
        for one, other in itertools.combinations(parts, 2):
            assert not seen[one].overlaps(seen[other]) or one in other.walk_children() or other in one.walk_children()


@pytest.mark.parametrize("size", TOO_SMALL, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_a_terminal_that_is_too_small_is_no_reason_to_crash(open_chat: OpenChat, size: tuple[int, int]) -> None:
    async with open_chat() as scene:
        await scene.ask("code")
        for key in ("f1", "f2", "f3", "f4"):
            await scene.press(key)
            await scene.until(lambda: scene.app.screen is not scene.chat)
            await scene.pilot.resize_terminal(*size)
            await scene.pilot.pause(0.1)
            await scene.pilot.resize_terminal(80, 24)
            await scene.press("escape")
            await scene.until(lambda: scene.app.screen is scene.chat)
        await scene.pilot.resize_terminal(*size)
        scene.llm.fails_after = 1
        await scene.ask("Hi", waits=False)
        await scene.until(lambda: scene.notice is not None)
        await scene.pilot.resize_terminal(80, 24)
        await scene.until(lambda: "Try again" in scene.shown)
