"""A chat in memory that tests press keys in, with a model that is none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeFits, FakeLLM
from rich.cells import cell_len
from textual import events
from textual.pilot import Pilot

from vkllm.faces.chat.store import ChatStore
from vkllm.faces.tui.app import ChatApp, ChatOptions
from vkllm.faces.tui.chat_screen import ChatScreen
from vkllm.faces.tui.message_view import MessageView, Notice

PATIENCE_S = 120.0  # a machine may be busy with anything


def delay_by_others() -> float:
    """How many times as long as alone this thread takes for 2 ms of work, because of what else runs on the machine."""
    start, work = time.perf_counter(), time.thread_time()
    while time.thread_time() - work < 0.002:
        pass
    return (time.perf_counter() - start) / 0.002


class Scene:
    """A running chat: keys go in, text comes out."""

    def __init__(self, app: ChatApp, pilot: Pilot[None], store: ChatStore) -> None:
        self.app = app
        self.pilot = pilot
        self.store = store

    @property
    def chat(self) -> ChatScreen:
        """The chat's screen, whatever lies on top of it."""
        return next(screen for screen in self.app.screen_stack if isinstance(screen, ChatScreen))

    @property
    def llm(self) -> FakeLLM:
        """The model that was opened last."""
        return FakeLLM.opened[-1]

    @property
    def views(self) -> list[MessageView]:
        return self.chat.conversation.views

    @property
    def texts(self) -> list[str]:
        """The messages that are shown, without reasoning."""
        return [view.text for view in self.views]

    @property
    def notice(self) -> Notice | None:
        return next(iter(self.chat.query(Notice)), None)

    @property
    def shown(self) -> str:
        """All text on the terminal."""
        return "\n".join(strip.text for strip in self.app.screen._compositor.render_strips())

    def colours(self, text: str) -> set[str]:
        """The colours of the line on the terminal that holds a text."""
        strips = self.app.screen._compositor.render_strips()
        line = next(strip for strip in strips if text in strip.text)
        return {str(segment.style.color) for segment in line if segment.style is not None and segment.text.strip()}

    def place(self, text: str) -> tuple[int, int]:
        """Where a text stands on the terminal, column and line."""
        for y, line in enumerate(self.shown.split("\n")):
            if (x := line.find(text)) >= 0:
                return cell_len(line[:x]), y
        raise AssertionError(f"{text!r} is not on the screen:\n{self.shown}")

    async def click(self, text: str) -> None:
        """Clicks on a text."""
        await self.pilot.click(offset=self.place(text))
        await self.pilot.pause()

    @property
    def told(self) -> list[str]:
        """The notifications so far."""
        return [notification.message for notification in self.app._notifications]

    async def until(self, holds: Callable[[], Any]) -> None:
        """Waits until something holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, self.shown
            await self.pilot.pause(0.01)
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        """Presses keys and waits until each has been handled to its end."""
        await self.pilot.press(*keys)
        await self.until(lambda: self.app.keys.is_idle)

    def press_at_once(self, *keys: str) -> None:
        """Presses keys as one burst, as a fast typist or a paste without marks does; waits for nothing."""
        for key in keys:
            self.app.post_message(events.Key("space", " ") if key == " " else events.Key(key, None))

    async def seconds_for(self, key: str) -> tuple[float, float]:
        """Presses a key in the prompt; how long it takes until its character is drawn, and of that this thread's work.

        What else the machine does lengthens the first, but not the second.
        """
        n_before, screen = len(self.chat.prompt.text), self.app.screen
        drawn: list[float] = []
        original = screen._compositor_refresh

        def refresh() -> None:
            original()
            if len(self.chat.prompt.text) > n_before:
                drawn.append(time.perf_counter())

        screen._compositor_refresh = refresh  # type: ignore[method-assign]
        start, work = time.perf_counter(), time.thread_time()
        self.app.simulate_key(key)
        while not drawn:
            assert time.perf_counter() - start < PATIENCE_S
            await asyncio.sleep(0.001)
        del screen._compositor_refresh  # type: ignore[method-assign]
        return drawn[0] - start, time.thread_time() - work

    async def type(self, text: str) -> None:
        await self.press(*["space" if key == " " else key for key in text])

    async def ask(self, text: str, *, waits: bool = True) -> None:
        """Sends a question and waits for the whole answer, or only until it is being written."""
        self.chat.prompt.set_text(text)
        self.chat.prompt.focus()
        n_messages = len(self.chat.messages)
        await self.press("enter")
        await self.until(lambda: len(self.chat.messages) > n_messages)
        if waits:
            await self.until(lambda: not self.chat.is_answering and len(self.chat.messages) % 2 == 0)

    async def press_button(self, label: str) -> None:
        """Presses the button of the error that begins so, without a mouse."""
        assert self.notice is not None
        button = next(button for button in self.notice.query("Button") if str(button.label).startswith(label))
        button.focus()
        await self.press("enter")


OpenChat = Callable[..., AbstractAsyncContextManager[Scene]]


@pytest.fixture
def open_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenChat]:
    """Opens the chat on one store a test. model: of FakeLLM; size: of the terminal.

    notifications: whether they are drawn.
    """
    FakeLLM.opened.clear()
    for name in ("TMUX", "DISPLAY", "WAYLAND_DISPLAY", "VTE_VERSION", "TERM_PROGRAM"):  # nobody's clipboard changes
        monkeypatch.delenv(name, raising=False)

    @asynccontextmanager
    async def open_one(
        model: str | None = "tiny",
        size: tuple[int, int] = (80, 24),
        *,
        notifications: bool = False,
        **options: Any,
    ) -> AsyncIterator[Scene]:
        store = ChatStore(tmp_path / "chats.db")
        app = ChatApp(ChatOptions(model=model, **options), store, FakeLLM, FakeFits())
        app.animation_level = "none"
        async with app.run_test(size=size, notifications=notifications) as pilot:
            scene = Scene(app, pilot, store)
            await pilot.pause()
            if model is not None and model not in ("missing", "huge", "slow", "hanging"):
                await scene.until(lambda: scene.chat.session.llm is not None)
            yield scene
        app.session.close()
        store.close()

    yield open_one
    for llm in FakeLLM.opened:
        llm.close()
    for thread in threading.enumerate():  # one that goes on would slow all later tests down
        if thread.name == "vkllm-answer":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
