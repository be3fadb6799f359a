"""Keys in order: each is handled to its end, screens that it opens or closes included, before the next one begins.

Textual passes a key on to the widget with the focus and takes the next key at once, while the first one still goes
from widget to widget. So keys that come quickly after one that opens a dialog would go to the screen below it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from textual.app import App
from textual.dom import DOMNode
from textual.events import Event
from textual.message_pump import MessagePump
from textual.screen import Screen

_FEWEST_ROUNDS = 2  # a widget's answer to a key is often a message of its own, which comes after the key
_MOST_ROUNDS = 10
_PATIENCE_S = 5.0  # with a widget that does not come to its messages: later keys must not be lost with it

_Place = tuple[Screen[Any], DOMNode | None]


class KeyOrder:
    """Waits, after each key, until every widget that it may have reached has handled it."""

    def __init__(self, app: App[Any], handle: Callable[[Event], Awaitable[None]]) -> None:
        """handle: does with a key what the application does; it is called by the application's own task."""
        self._app = app
        self._handle = handle
        self._keys: asyncio.Queue[Event] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._n_unhandled = 0
        self._settled: _Place | None = None

    @property
    def is_idle(self) -> bool:
        """Whether all keys have been handled to their end."""
        return self._n_unhandled == 0

    def add(self, key: Event) -> None:
        """Handles a key, or a paste, after those before it."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="keys in order")
        self._n_unhandled += 1
        self._keys.put_nowait(key)

    def expect_change(self) -> None:
        """What has just happened, a click say, may open or close a screen; the next key waits for that."""
        self._settled = None

    def close(self) -> None:
        """Ends; keys that still wait are dropped."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            key = await self._keys.get()
            if self._place() != self._settled:
                await self._settle()
            await self._pass(self._app, lambda key=key: self._handle(key))  # type: ignore[misc]
            await self._settle()
            self._n_unhandled -= 1

    async def _settle(self) -> None:
        """Waits until messages have gone from the focus to the application and neither it nor the screen changed."""
        for n_rounds in range(1, _MOST_ROUNDS + 1):
            place = self._place()
            screen, focused = place
            for node in (focused or screen).ancestors_with_self:
                await self._pass(node)
            if n_rounds >= _FEWEST_ROUNDS and self._place() == place:
                break
        self._settled = self._place()

    def _place(self) -> _Place:
        return self._app.screen, self._app.screen.focused

    async def _pass(self, pump: MessagePump, handle: Callable[[], Any] | None = None) -> None:
        """Waits until a widget, if it is still there, has handled what it was sent so far, and then the callback."""
        is_past = asyncio.Event()

        async def run() -> None:
            try:
                if handle is not None:
                    await handle()
            finally:
                is_past.set()

        if pump.call_later(run):
            past = asyncio.create_task(is_past.wait())
            ends = [past] if pump is self._app else [past, pump.task]
            await asyncio.wait(ends, timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            past.cancel()
