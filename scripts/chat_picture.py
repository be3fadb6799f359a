"""Draws docs/chat.svg, the picture of the chat in the README, from a chat with the default model that really happens.

    python scripts/chat_picture.py [MODEL]

It takes a Vulkan device and, on a CPU, half a minute.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from pathlib import Path

from textual.pilot import Pilot

from vkllm.faces.chat.store import ChatStore
from vkllm.faces.tui.app import ChatApp, ChatOptions
from vkllm.faces.tui.chat_screen import ChatScreen

SIZE = (100, 30)
QUESTIONS = ["What is the capital of France?", "Write a Python function that adds two numbers."]
SAMPLING = {"temperature": 0, "max_tokens": 120}
TARGET = Path(__file__).parent.parent / "docs" / "chat.svg"


async def _draw(model: str, folder: Path) -> None:
    store = ChatStore(folder / "chats.db")
    app = ChatApp(ChatOptions(model=model, sampling=SAMPLING, n_ctx=2048), store)
    async with app.run_test(size=SIZE) as pilot:
        screen = app.screen
        assert isinstance(screen, ChatScreen)
        await _until_idle(pilot, screen)
        for question in QUESTIONS:
            screen.prompt.set_text(question)
            await pilot.press("enter")
            await _until_idle(pilot, screen)
        app.clear_notifications()
        await pilot.pause(1)
        svg = app.export_screenshot(title="vkllm")
        # The reader's own fonts: a picture in a README fetches nothing.
        svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
        TARGET.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    app.session.close()
    store.close()


async def _until_idle(pilot: Pilot[None], screen: ChatScreen) -> None:
    await pilot.pause(0.5)
    while screen.is_answering or screen.session.loading is not None:
        await pilot.pause(0.2)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(_draw(sys.argv[1] if len(sys.argv) > 1 else "smollm2", Path(name)))
