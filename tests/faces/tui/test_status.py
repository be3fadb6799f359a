"""The line of figures: speed, context, memory, device; and how far a model is loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import OpenChat, Scene

from vkllm.faces.tui import load_bar
from vkllm.faces.tui.jobs import Progress
from vkllm.faces.tui.load_bar import LoadBar
from vkllm.faces.tui.session import Session
from vkllm.faces.tui.status_bar import ContextUsed, memory_in_use
from vkllm.model.memory.limits import Tier
from vkllm.model.memory.plan import MemoryPlan, TierPlan

GIB = 2**30


def session(*tiers: TierPlan, moved_bytes: int = 0, is_cpu_device: bool = False) -> Session:
    """A session whose model lies in these tiers."""
    made = Session(lambda *_, **__: None, None)  # type: ignore[arg-type,return-value]
    plan = MemoryPlan(4096, {}, (), Tier.LOCAL, tiers, 0.0)
    llm: Any = SimpleNamespace(plan=plan, moved_bytes=moved_bytes, is_cpu_device=is_cpu_device)
    made.llm = llm
    return made


LOCAL = TierPlan(Tier.LOCAL, 8 * GIB, 3 * GIB, 3 * GIB, GIB, 0, 4e11)
HOST = TierPlan(Tier.HOST, 20 * GIB, 2 * GIB, 2 * GIB, 0, 0, 2e10)


def test_memory_in_use_is_the_device_s_own_and_what_it_shares() -> None:
    assert memory_in_use(session(LOCAL)) == ["VRAM 4.0 GiB of 8.0 GiB", "VRAM 4.0 GiB"]
    assert memory_in_use(session(LOCAL, HOST))[1] == "VRAM 4.0 GiB · shared 2.0 GiB"
    shared = replace(HOST, tier=Tier.SHARED)
    assert memory_in_use(session(LOCAL, shared))[1] == "VRAM 4.0 GiB · shared 2.0 GiB"
    assert memory_in_use(session(LOCAL, is_cpu_device=True)) == ["RAM 4.0 GiB"]


def test_what_the_driver_refused_counts_where_it_lies() -> None:
    assert memory_in_use(session(LOCAL, HOST, moved_bytes=GIB))[1] == "VRAM 3.0 GiB · shared 3.0 GiB"


@pytest.mark.parametrize(("n_tokens", "left", "n_shifts"), [(0, 0, 0), (100, 100, 0), (101, 51, 1), (240, 90, 3)])
def test_a_context_that_was_shifted_is_estimated(n_tokens: int, left: int, n_shifts: int) -> None:
    used = ContextUsed.estimate(n_tokens, 100)
    assert (used.n_tokens, used.n_shifts, used.is_estimate) == (left, n_shifts, True)


async def until_answered(scene: Scene) -> None:
    await scene.until(lambda: len(scene.texts) == 2 and not scene.chat.is_answering)


@pytest.mark.asyncio
async def test_the_context_never_shows_more_than_it_holds(open_chat: OpenChat) -> None:
    async with open_chat(n_ctx=100) as scene:
        scene.llm.step_s = 0.001
        await scene.ask("endless", waits=False)
        shares = set()
        await scene.until(lambda: shares.add(scene.shown.split("/100 (")[1].split(" %")[0]) or len(shares) > 30)
        assert max(map(int, shares)) <= 100
        assert "shifted" in scene.shown
        await scene.press("escape")
        await scene.until(lambda: not scene.chat.is_answering)
        assert "shifted" in scene.shown


@pytest.mark.asyncio
async def test_what_was_used_is_the_engine_s_count_after_an_answer(open_chat: OpenChat) -> None:
    async with open_chat(n_ctx=100) as scene:
        await scene.ask("one two three")
        assert "context 10/100 (10 %)" in scene.shown  # 3 words asked and 7 said
        assert "VRAM 99.0 MiB of 8.0 GiB · fake device" in scene.shown
        scene.chat.session.llm.n_ctx = 8  # type: ignore[union-attr]
        await scene.press("ctrl+r")
        await scene.until(lambda: "shifted 1×" in scene.shown and not scene.chat.is_answering)
        assert "context ~6/8 (75 %), shifted 1×" in scene.shown


@pytest.mark.asyncio
async def test_speed_is_shown_while_an_answer_comes_and_after(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.gate.clear()
        await scene.ask("one two three", waits=False)
        # below, and beside the name
        await scene.until(lambda: len(re.findall(r"reading 3 tokens, \d+ s", scene.shown)) == 2)
        await scene.until(lambda: re.search(r"reading 3 tokens, [1-9]\d* s", scene.shown))
        scene.llm.gate.set()
        await until_answered(scene)
        assert "Answer · tiny · 8.0 tok/s" in scene.shown
        assert "8.0 tok/s · context 10/2048" in scene.shown


@pytest.mark.asyncio
async def test_a_narrow_terminal_keeps_what_matters_most(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        for width, has, has_not in [
            (120, "fake device", "nothing"),
            (60, "VRAM 99.0 MiB", "fake device"),
            (46, "ready · context 0/2048", "(0 %)"),
            (20, "ready", "VRAM"),
        ]:
            await scene.pilot.resize_terminal(width, 24)
            await scene.until(lambda: scene.app.size.width == width)  # noqa: B023
            line = scene.shown.split("\n")[-2]
            assert has in line and has_not not in line


@pytest.mark.asyncio
async def test_a_load_shows_bytes_and_after_some_seconds_the_time_left(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_chat() as scene:
        bar = scene.chat.query_one(LoadBar)
        clock = [0.0]
        monkeypatch.setattr(load_bar, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        for clock[0], n_done, expected in [
            (0.0, 0, "0 B of"),
            (1.0, 10**8, "95.4 of 954 MiB "),
            (5.0, 5 * 10**8, "5 s left"),
        ]:
            bar.show(Progress("fetching a-model-of-a-very-long-name-that-fills-the-line", n_done, 10**9))
            await scene.pilot.pause()
            assert expected in scene.shown, scene.shown
        clock[0] = 6.0
        bar.show(Progress("loading a.gguf", 10**9, 10**9))
        await scene.pilot.pause()
        assert "954 MiB, starting" in scene.shown
        bar.show(None)
        await scene.pilot.pause()
        assert "starting" not in scene.shown
