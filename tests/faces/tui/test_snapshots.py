"""How it looks, at the size of an old terminal and of a large one. `pytest --snapshot-update` draws them anew."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeFits, FakeLLM
from textual.pilot import Pilot

from vkllm import DeviceLost
from vkllm.faces.chat.store import ChatStore
from vkllm.faces.tui.app import ChatApp, ChatOptions
from vkllm.faces.tui.chat_screen import ChatScreen
from vkllm.faces.tui.session import KnownModel

ANSWER = """\
Three ways, **fastest first**:

1. `sum(numbers)`
2. a loop

```python
total = 0
for number in numbers:
    total += number  # one by one
```

| way | time |
| --- | --- |
| sum | 1 ms |
| loop | 9 ms |
"""
MODELS = [
    KnownModel("smollm2", "SmolLM2 135M Instruct", 98_362_432, "/models/smollm2.gguf"),
    KnownModel("spilling", "One that is larger than the card", 11_000_000_000, "/models/spilling.gguf"),
    KnownModel("unknown", "Nobody has planned this one yet", 11_000_000_000, None, 12_000_000_000),
    KnownModel("large", "A large one", 40_000_000_000, None, 46_000_000_000),
]
SIZES = [(80, 24), (120, 40), (60, 20)]  # the last one is a Steam Deck's screen in large letters


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChatApp:
    """A chat with a past, whose clock stands still and whose cursor does not blink."""
    monkeypatch.setattr("vkllm.faces.tui.session.Session.known_models", lambda self, recent: MODELS)
    monkeypatch.setattr("vkllm.faces.tui.prompt.Prompt.cursor_blink", False)
    monkeypatch.setattr("textual.widgets.Input.cursor_blink", False)
    monkeypatch.setattr("vkllm.faces.tui.chats_screen._when", lambda chat: f"2026-01-0{chat.id} 12:00")
    store = ChatStore(tmp_path / "chats.db", clock=lambda: 0.0)
    for title in ("How do I sum a list?", "Ein längerer Titel auf Deutsch, der nicht in jede Zeile passt 日本語"):
        chat = store.new_chat(title, "", {})
        question = store.add_message(chat.id, None, "user", title)
        answer = store.add_message(chat.id, question.id, "assistant", f"<think>\nHm, easy.\n</think>\n\n{ANSWER}")
        store.add_message(chat.id, answer.id, "user", "Thanks!")
    FakeLLM.opened.clear()
    return ChatApp(ChatOptions(model="/models/smollm2.gguf"), store, FakeLLM, FakeFits())


async def ready(pilot: Pilot[None]) -> ChatScreen:
    app = pilot.app
    assert isinstance(app, ChatApp)
    app.animation_level = "none"
    while app.session.llm is None or app.session.loading is not None:
        await pilot.pause(0.02)
    screen = app.screen
    assert isinstance(screen, ChatScreen)
    return screen


async def a_conversation(pilot: Pilot[None]) -> None:
    screen = await ready(pilot)
    await screen.show_chat(1)
    await pilot.press("up", "up")


async def an_error(pilot: Pilot[None]) -> None:
    screen = await ready(pilot)
    await screen.show_chat(2)
    FakeLLM.opened[-1].fails_after = 0
    FakeLLM.opened[-1].error = DeviceLost("the engine's process was killed by SIGKILL; try again to start a new one")
    await pilot.press("ctrl+r")
    while not screen.query("Notice"):
        await pilot.pause(0.02)


async def settled(pilot: Pilot[None]) -> None:
    """Waits until nothing changes any more; footers are drawn a moment after their screen."""
    shown = ""
    while shown != (shown := re.sub(r"terminal-\d+", "", pilot.app.export_screenshot())):
        await pilot.pause(0.3)


def pressing(*keys: str) -> Callable[[Pilot[None]], Awaitable[None]]:
    async def run(pilot: Pilot[None]) -> None:
        await ready(pilot)
        await pilot.press(*keys)

    return run


SCENES: dict[str, Callable[[Pilot[None]], Awaitable[None]]] = {
    "welcome": pressing(),
    "conversation": a_conversation,
    "error": an_error,
    "chats": pressing("f2"),
    "models": pressing("f3", "down"),
    "parameters": pressing("f4"),
    "help": pressing("f1"),
}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("scene", SCENES)
def test_it_looks_as_it_did(snap_compare: Any, app: ChatApp, scene: str, size: tuple[int, int]) -> None:
    async def prepare(pilot: Pilot[None]) -> None:
        await SCENES[scene](pilot)
        await settled(pilot)

    assert snap_compare(app, run_before=prepare, terminal_size=size)
