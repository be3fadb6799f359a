"""The chat with an engine in a real process, which is killed, hangs or takes its time."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Scene
from fake_llm import FakeFits
from processes import is_running

from vkllm import LLM, VkllmError
from vkllm.engine.process.handle import EngineProcess
from vkllm.faces.chat.store import ChatStore
from vkllm.faces.tui import app as tui
from vkllm.faces.tui.app import ChatApp, ChatOptions
from vkllm.faces.tui.chat_screen import ChatScreen

OpenReal = Callable[..., AbstractAsyncContextManager[Scene]]


@pytest.fixture
def open_real(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> OpenReal:
    """The chat with an LLM whose engine is fake_engine.FakeEngine in a child process. device: how it behaves."""
    monkeypatch.setattr(
        "vkllm.api.loading.EngineProcess", functools.partial(EngineProcess, factory="fake_engine:FakeEngine")
    )

    @asynccontextmanager
    async def open_one(device: str = "no end", *, waits: bool = True) -> AsyncIterator[Scene]:
        store = ChatStore(tmp_path / "chats.db")
        app = ChatApp(ChatOptions(model=str(tiny_gguf), device=device, n_ctx=256), store, LLM, FakeFits())
        app.animation_level = "none"
        try:
            async with app.run_test(size=(80, 24)) as pilot:
                scene = Scene(app, pilot, store)
                if waits:
                    await scene.until(lambda: scene.chat.session.llm is not None)
                yield scene
        finally:
            app.session.close()
            store.close()

    return open_one


def engine(scene: Scene) -> EngineProcess:
    llm = scene.chat.session.llm
    assert llm is not None
    return llm._engine


async def until_answering(scene: Scene) -> None:
    await scene.until(lambda: len(scene.texts) > 1 and len(scene.texts[-1]) > 3)


@pytest.mark.asyncio
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_an_engine_that_is_killed_in_mid_answer_leaves_the_chat_and_a_way_on(open_real: OpenReal) -> None:
    async with open_real() as scene:
        await scene.ask("a question", waits=False)
        await until_answering(scene)
        first = engine(scene).pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await scene.until(lambda: scene.notice is not None)
        assert "was killed by SIGKILL while answering" in " ".join(scene.shown.split())
        partial = scene.texts[-1]
        message = scene.store.messages(scene.chat.chat.id)[-1]  # type: ignore[union-attr]
        assert len(partial) > 3 and (message.content, message.state) == (partial, "failed")
        await scene.press_button("Try again")
        await until_answering(scene)
        assert scene.notice is None and "2/2" in scene.shown
        assert engine(scene).pid not in (None, first)
        await scene.press("escape")
        await scene.until(lambda: not scene.chat.is_answering)
        await scene.press("up", "left")  # the partial answer is kept as another version
        await scene.until(lambda: scene.texts[-1] == partial)


@pytest.mark.asyncio
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_an_engine_that_is_killed_while_nothing_happens_is_started_again(open_real: OpenReal) -> None:
    async with open_real("usual") as scene:
        first = engine(scene).pid
        os.kill(first, signal.SIGKILL)  # type: ignore[arg-type]
        await scene.until(lambda: not is_running(first))  # type: ignore[arg-type]
        await scene.ask("a question", waits=False)
        await scene.until(lambda: len(scene.texts) > 1 and len(scene.texts[-1]) > 3 and scene.notice is None)
        assert engine(scene).pid != first


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("device", "told"),
    [
        (
            "wrong",
            "The driver of fake device computes wrongly with dot products and matrices; slower kernels run instead.",
        ),
        ("cpu", "fake device is a Vulkan driver on the CPU, which is slow."),
    ],
)
async def test_what_makes_a_device_slow_is_told_as_on_the_command_line(
    open_real: OpenReal, monkeypatch: pytest.MonkeyPatch, device: str, told: str
) -> None:
    seen: list[str] = []  # those on the screen are gone after a while
    monkeypatch.setattr(ChatScreen, "notify", lambda screen, message, **how: seen.append(message))
    async with open_real(device) as scene:
        await scene.until(lambda: seen)
    assert seen == [told]


@pytest.mark.asyncio
@pytest.mark.parametrize("device", ["die", "crash", "none"])
async def test_a_load_that_fails_is_a_card_with_a_way_on(open_real: OpenReal, device: str) -> None:
    async with open_real(device, waits=False) as scene:
        await scene.until(lambda: scene.notice is not None)
        assert "Traceback" not in scene.shown
        assert "Try again (^R)" in scene.shown and "Other model (F3)" in scene.shown
        await scene.press("ctrl+r")
        await scene.until(lambda: scene.chat.session.loading is not None)
        await scene.until(lambda: scene.chat.session.loading is None and scene.notice is not None)


@pytest.mark.asyncio
@pytest.mark.parametrize("is_answering", [False, True])
async def test_quitting_ends_the_process_within_a_second(open_real: OpenReal, is_answering: bool) -> None:
    async with open_real("no end") as scene:
        pid = engine(scene).pid
        if is_answering:
            await scene.ask("a question", waits=False)
            await until_answering(scene)
        start = time.monotonic()
        await scene.pilot.press("ctrl+q")
        scene.app.session.close()
        assert time.monotonic() - start < 10  # a second, and what a busy machine adds
        assert pid is not None and not is_running(pid)


@pytest.mark.asyncio
async def test_quitting_does_not_wait_for_a_model_that_is_loaded(open_real: OpenReal) -> None:
    """Its process ends with Python, which test_real_terminal.py sees to."""
    async with open_real("slow start", waits=False) as scene:
        await scene.until(lambda: "loading" in scene.shown)
        start = time.monotonic()
        await scene.pilot.press("ctrl+q")
        scene.app.session.close()
        assert time.monotonic() - start < 30  # the load would take 60


def test_an_end_that_takes_longer_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tui, "_END_S", 0.05)
    ended = threading.Event()

    class Session:
        def close(self) -> None:
            time.sleep(0.3)
            ended.set()

    session: Any = Session()
    tui._end(session)
    assert ended.is_set()
    assert "the GPU ends the step" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["newer", "garbage", "a folder", "settings"])
def test_chats_that_cannot_be_opened_end_in_a_sentence_before_the_screen_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("VKLLM_DATA", str(tmp_path))
    monkeypatch.setattr(ChatApp, "run", lambda self: pytest.fail("the screen was taken"))
    path = tmp_path / "chats.db"
    match damage:
        case "newer":
            store = ChatStore(path)
            store._db.execute("PRAGMA user_version = 99")
            store.close()
        case "garbage":
            path.write_bytes(b"no database at all " * 100)
        case "a folder":
            path.mkdir()
        case "settings":
            store = ChatStore(path)
            store._db.execute("INSERT INTO settings VALUES ('parameters', '{')")
            store.close()
    with pytest.raises(VkllmError, match="VKLLM_DATA"):
        tui.run_chat(ChatOptions(model="tiny"), {})


@pytest.mark.asyncio
async def test_chats_that_another_program_locks_or_that_may_not_be_written_are_told_and_the_chat_goes_on(
    open_real: OpenReal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_real("usual") as scene:
        scene.store._db.execute("PRAGMA busy_timeout = 50")
        other = ChatStore(tmp_path / "chats.db")
        other._db.execute("BEGIN IMMEDIATE")
        scene.chat.prompt.set_text("a question")
        await scene.press("enter")
        await scene.until(lambda: any("end the other program" in told for told in scene.told))
        assert scene.chat.prompt.text == "a question"
        other._db.execute("ROLLBACK")
        scene.store._db.execute("PRAGMA query_only = ON")
        await scene.press("enter")
        await scene.until(lambda: any("readonly" in told for told in scene.told))
        assert scene.chat.prompt.text == "a question"
        scene.store._db.execute("PRAGMA query_only = OFF")
        await scene.press("enter")
        await until_answering(scene)
        other.close()
