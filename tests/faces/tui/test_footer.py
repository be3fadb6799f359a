"""The two lines at the bottom fit: figures of the model, and keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import OpenChat, Scene
from fake_llm import ANSWERS
from rich.cells import cell_len
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

from vkllm.faces.tui.session import KnownModel
from vkllm.model.memory.limits import Tier
from vkllm.model.memory.plan import MemoryPlan, TierPlan

pytestmark = pytest.mark.asyncio

GIB = 2**30
LOCAL = TierPlan(Tier.LOCAL, 140 * GIB, 104 * GIB, 104 * GIB, GIB, 0, 4e11)
HOST = TierPlan(Tier.HOST, 500 * GIB, 130 * GIB, 130 * GIB, 0, 0, 2e10)
WIDTHS = [120, 80, 75, 60, 46]


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vkllm.faces.tui.session.known_models",
        lambda recent: [KnownModel("tiny", "", 98_362_432, "/m/tiny.gguf")],
    )


async def whole_keys(scene: Scene, first: str) -> list[str]:
    """The names of the keys that the footer shows, none of them cut, once they begin so."""

    def names() -> list[str]:
        return [key.description for key in scene.app.screen.query(FooterKey)]

    def fit() -> bool:
        footer = scene.app.screen.query_one(Footer)
        room = footer.content_region
        regions = [key.region for key in footer.query(FooterKey)]
        return all(region.area and room.x <= region.x and region.right <= room.right for region in regions)

    await scene.until(lambda: names()[:1] == [first] and fit())
    return names()


@pytest.mark.parametrize("width", WIDTHS)
async def test_figures_of_a_large_model_fit_and_the_important_ones_stay(
    open_chat: OpenChat, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_chat(size=(width, 24)) as scene:
        llm: Any = scene.chat.session.llm
        llm.path = Path("Meta-Llama-3.1-405B-Instruct-Q4_K_M-日本語-" * 4 + ".gguf")
        llm.device_name = "NVIDIA GeForce RTX 4090 Laptop GPU (RADV STRIX1)"
        llm.n_ctx = 131_072
        llm.plan = MemoryPlan(131_072, {}, (), Tier.LOCAL, (LOCAL, replace(HOST)), 0.0)
        llm.gate.clear()
        question = "word " * 131_000
        monkeypatch.setitem(ANSWERS, question, "word " * 200)  # and what is first is forgotten
        await scene.ask(question, waits=False)
        await scene.until(lambda: "reading" in scene.shown.split("\n")[-2])
        for is_over in (False, True):
            if is_over:
                llm.gate.set()
                await scene.until(lambda: not scene.chat.is_answering)
            line, title = scene.shown.split("\n")[-2], scene.shown.split("\n")[0]
            assert cell_len(line) == cell_len(title) == width
            if width >= 60:
                assert "context" in line and "/131072" in line
            if width >= 80:
                assert not is_over or ("VRAM 105 GiB" in line and "shared 130 GiB" in line)


@pytest.mark.parametrize("width", WIDTHS)
async def test_keys_are_whole_and_help_is_always_there(open_chat: OpenChat, width: int) -> None:
    async with open_chat(size=(width, 24)) as scene:
        await scene.ask("think")
        shown = await whole_keys(scene, "Help")
        assert "Chats" in shown
        if width >= 80:
            assert shown == ["Help", "Chats", "Models", "Parameters", "Stop", "New", "Again"]
        await scene.press("up")
        shown = await whole_keys(scene, "Copy")
        assert "Help" in shown
        if width >= 80:
            assert shown == ["Copy", "Copy code", "Again", "Delete", "Thoughts", "Help", "Stop"]


@pytest.mark.parametrize("width", [width for width in WIDTHS if width >= 60])
@pytest.mark.parametrize(("key", "first"), [("f2", "Open"), ("f3", "Load"), ("f4", "Accept")])
async def test_keys_of_dialogs_are_whole(open_chat: OpenChat, key: str, first: str, width: int) -> None:
    async with open_chat(size=(width, 24)) as scene:
        await scene.ask("Hi")
        await scene.press(key)
        await scene.until(lambda: scene.app.screen is not scene.chat)
        assert (await whole_keys(scene, first))[-1] in ("Back", "Cancel")
