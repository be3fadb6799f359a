"""The chat as a Textual application: its look, its palette, how it begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from textual.app import App, SystemCommand
from textual.screen import Screen

from vkllm import LLM, VkllmError
from vkllm.faces.tui.chat_screen import ChatScreen
from vkllm.faces.tui.chat_store import ChatStore, chats_path
from vkllm.faces.tui.jobs import OpenModel
from vkllm.faces.tui.parameters_screen import Parameters
from vkllm.faces.tui.session import Session

_TWICE_S = 3.0  # the second Ctrl+C quits if it comes within this time


@dataclass(frozen=True)
class ChatOptions:
    """What was asked for on the command line. Where nothing was, what was used last holds."""

    model: str | None = None
    system: str | None = None
    n_ctx: int | None = None
    device: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


class ChatApp(App[None]):
    """The application. open_model: as `LLM`; tests put a model without a device there."""

    TITLE = "vkllm"
    CSS_PATH = "chat.tcss"
    ENABLE_COMMAND_PALETTE = True

    def __init__(self, options: ChatOptions, store: ChatStore, open_model: OpenModel = LLM) -> None:
        super().__init__()
        self.session = Session(open_model, n_ctx=options.n_ctx, device=options.device)
        self._store = store
        self._options = options
        self._last_interrupt_s = 0.0

    def on_mount(self) -> None:
        """Shows the chat with what was used last."""
        stored = self._store.setting("parameters", {"system": "", "sampling": {}})
        options = self._options
        system = stored["system"] if options.system is None else options.system
        parameters = Parameters(system, stored["sampling"] | options.sampling, options.n_ctx)
        recent = self._store.setting("recent_models", [])
        theme = self._store.setting("theme", self.theme)
        if theme in self.available_themes:
            self.theme = theme
        self.theme_changed_signal.subscribe(self, lambda theme: self._keep_theme(theme.name))
        self.push_screen(
            ChatScreen(self._store, self.session, parameters, options.model or (recent[0] if recent else None))
        )
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.leave)

    def leave(self) -> None:
        """Keeps what there is of an answer and ends the application."""
        for screen in self.screen_stack:
            if isinstance(screen, ChatScreen):
                screen.stop_answer()
        self.exit()

    async def action_quit(self) -> None:
        """Ctrl+Q."""
        self.leave()

    def action_help_quit(self) -> None:
        """Ctrl+C with nothing selected: stops an answer, and quits if it comes twice."""
        now = time.monotonic()
        if now - self._last_interrupt_s < _TWICE_S:
            self.leave()
            return
        self._last_interrupt_s = now
        self.notify("Ctrl+C again quits.")
        if isinstance(self.screen, ChatScreen) and self.screen.is_answering:
            self.screen.action_stop()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the palette offers: the chat's commands before Textual's own."""
        if isinstance(screen, ChatScreen):
            yield SystemCommand("New chat", "Ctrl+N", screen.action_new_chat)
            yield SystemCommand("Open, search or delete chats", "F2", screen.action_chats)
            yield SystemCommand("Rename chat", "Give this chat another name", screen.action_rename)
            yield SystemCommand("Export chat", "Write this chat to a Markdown file", screen.action_export)
            yield SystemCommand("Choose model", "F3", screen.action_models)
            yield SystemCommand("Parameters", "F4: sampling, system prompt, context", screen.action_parameters)
            yield SystemCommand("Answer again", "Ctrl+R", screen.action_regenerate)
            yield SystemCommand("Stop", "Esc: the answer or the load", screen.action_stop)
            yield SystemCommand("Copy answer", "The last one, without its reasoning", screen.action_copy_answer)
            yield SystemCommand("Copy code", "A block of code of the last answer", screen.action_copy_code)
            yield SystemCommand("Help", "F1: what the keys do", screen.action_help)
        for command in super().get_system_commands(screen):
            if command.title in ("Theme", "Quit"):
                yield command

    def _keep_theme(self, name: str) -> None:
        with contextlib.suppress(VkllmError):  # it holds for today; chats tell of a store that fails
            self._store.set_setting("theme", name)


def run_chat(options: ChatOptions, loading: Mapping[str, Any]) -> None:
    """Runs the chat until the user leaves, then ends the engine. loading: more arguments of LLM.

    Raises VkllmError if chats cannot be kept.
    """
    store = ChatStore(chats_path())
    app = ChatApp(options, store, partial(LLM, **loading))
    try:
        app.run()
    finally:
        app.session.close()
        store.close()
