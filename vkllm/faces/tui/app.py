"""The chat as a Textual application: its look, its palette, how it begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from textual import events
from textual.app import App, SystemCommand
from textual.drivers._writer_thread import WriterThread
from textual.filter import LineFilter
from textual.screen import Screen

from vkllm import LLM, VkllmError
from vkllm.faces.chat.model_check import OnProgress, check_model
from vkllm.faces.chat.store import ChatStore, chats_path
from vkllm.faces.remote import Server
from vkllm.faces.remote_model import RemoteModel, open_remote
from vkllm.faces.terminal import complain
from vkllm.faces.tui.chat_screen import ChatScreen
from vkllm.faces.tui.clipboard import copy_by_program, terminal_doubt
from vkllm.faces.tui.fits import Fits
from vkllm.faces.tui.jobs import CheckModel, Model, OpenModel
from vkllm.faces.tui.key_order import KeyOrder
from vkllm.faces.tui.parameters_screen import Parameters
from vkllm.faces.tui.printable import PrintableLines, without_controls
from vkllm.faces.tui.session import Session
from vkllm.store import FoundModel

_TWICE_S = 3.0  # the second Ctrl+C quits if it comes within this time
_END_S = 1.0  # an engine that ends takes less


@dataclass(frozen=True)
class ChatOptions:
    """What was asked for on the command line. Where nothing was, what was used last holds."""

    model: str | FoundModel | None = None
    system: str | None = None
    n_ctx: int | None = None
    device: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    server: Server | None = None


class ChatApp(App[None]):
    """The application. open_model: as `LLM`; fits: how models fit; check: see `Session`. Tests need no device."""

    TITLE = "vkllm"
    CSS_PATH = "chat.tcss"
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self,
        options: ChatOptions,
        store: ChatStore,
        open_model: OpenModel = LLM,
        fits: Fits | None = None,
        check: CheckModel | None = None,
    ) -> None:
        super().__init__()
        if options.server is not None:
            open_model, check, fits = partial(_open_remote, options.server), None, None
        else:
            fits = fits or Fits({"device": options.device})
        self.session = Session(
            open_model, fits, n_ctx=options.n_ctx, device=options.device, check=check, server=options.server
        )
        self._store = store
        self.event_loop: asyncio.AbstractEventLoop | None = None
        self._printable = PrintableLines()
        self.keys = KeyOrder(self, super().on_event)
        self._last_interrupt_s = 0.0
        # What was used last. It is read here, where an error of the store is still told without a screen.
        stored = store.setting("parameters", {"system": "", "sampling": {}})
        system = stored["system"] if options.system is None else options.system
        self._parameters = Parameters(system, stored["sampling"] | options.sampling, options.n_ctx)
        recent = store.setting("recent_models", []) if options.server is None else [""]  # "": the server's own
        self._model = options.model or (recent[0] if recent else None)
        self._first_theme = store.setting("theme", self.theme)

    def on_mount(self) -> None:
        """Shows the chat."""
        if self._first_theme in self.available_themes:
            self.theme = self._first_theme
        self.theme_changed_signal.subscribe(self, lambda theme: self._keep_theme(theme.name))
        self.push_screen(ChatScreen(self._store, self.session, self._parameters, self._model))
        self.event_loop = asyncio.get_running_loop()
        # Windows has no such signals, and only the main thread may take them.
        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            for name in (signal.SIGTERM, signal.SIGHUP):
                self.event_loop.add_signal_handler(name, self.leave)

    async def on_event(self, event: events.Event) -> None:
        """Takes keys and pastes in order."""
        if isinstance(event, events.Key | events.Paste) and not event.is_forwarded:
            self.keys.add(event)
            return
        if isinstance(event, events.MouseDown | events.MouseUp):
            self.keys.expect_change()
        await super().on_event(event)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What each line goes through before it is drawn."""
        return [*super().get_line_filters(), self._printable]

    def on_unmount(self) -> None:
        """Nobody waits for keys any more."""
        self.keys.close()

    def leave(self) -> None:
        """Keeps what there is of an answer and ends the application."""
        for screen in self.screen_stack:
            if isinstance(screen, ChatScreen):
                screen.stop_answer()
        self.exit()

    def copy_to_clipboard(self, text: str) -> None:
        """Copies through the terminal and, where there is one, a program; says so if neither may have worked."""
        text = without_controls(text)  # pasted into a shell they would be keys
        super().copy_to_clipboard(text)
        self.run_worker(partial(self._copy_by_program, text), thread=True, exit_on_error=False)

    def _copy_by_program(self, text: str) -> None:
        if not copy_by_program(text) and (doubt := terminal_doubt(text)):
            advice = f"{doubt}. “Export chat” in the palette (Ctrl+P) writes a file."
            self.call_from_thread(self.notify, advice, severity="warning", timeout=8, markup=False)

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


@contextlib.contextmanager
def outliving_terminal(app: ChatApp) -> Iterator[None]:
    """Has the application left if its terminal is gone.

    Textual's thread that writes to the terminal dies of that, and whoever writes more than its queue holds would wait
    for ever, signals unheard. Here it goes on taking what is written until it is stopped.
    """
    usual = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.thread, WriterThread) or not issubclass(failure.exc_type, OSError):
            usual(failure)
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            if app.event_loop is not None:
                app.event_loop.call_soon_threadsafe(app.leave)
        while failure.thread._queue.get() is not None:
            pass

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


def run_chat(options: ChatOptions, loading: Mapping[str, Any]) -> None:
    """Runs the chat until the user leaves, then ends the engine. loading: more arguments of LLM.

    Raises VkllmError if chats cannot be kept.
    """
    store = ChatStore(chats_path())
    loading = {**loading, "device": options.device}
    fits = None if options.server is not None else Fits(loading)

    def check(model: str | FoundModel, n_ctx: int | None, open_llm: Model, on_progress: OnProgress) -> FoundModel:
        assert not isinstance(open_llm, RemoteModel)
        return check_model(model, {**loading, "n_ctx": n_ctx}, open_llm, on_progress)

    try:
        app = ChatApp(options, store, partial(LLM, **loading), fits, check)
        try:
            with outliving_terminal(app):
                app.run()
        finally:
            _end(app.session)
    finally:
        store.close()
    if app.return_code:
        sys.exit(app.return_code)


def _open_remote(
    server: Server, model: str, *, n_ctx: int | None, device: str | None, on_progress: OnProgress
) -> RemoteModel:
    """Opens a model of a server, which alone decides on its context and device."""
    return open_remote(server, model, on_progress)


def _end(session: Session) -> None:
    """Ends the engine, and says why if that takes longer than a moment."""
    thread = threading.Thread(target=session.close, name="vkllm-end", daemon=True)
    thread.start()
    thread.join(_END_S)
    if thread.is_alive():
        complain("note", "the GPU ends the step that it is at; Ctrl-C does not wait for that")
        thread.join()
