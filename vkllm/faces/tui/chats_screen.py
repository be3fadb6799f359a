"""The list of chats: search, open, rename, delete, export. It changes the store; the chat screen looks afterwards."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Footer, Input, OptionList
from textual.widgets.option_list import Option

from vkllm.errors import VkllmError
from vkllm.faces.chat.reasoning import as_markdown, file_name
from vkllm.faces.chat.store import Chat, ChatStore
from vkllm.faces.tui.cells import padded
from vkllm.faces.tui.dialogs import AskText, Confirm

_SEARCH_AFTER_S = 0.1
_WHEN_WIDTH = len("  2026-01-01 12:00") + 2  # and a blank at each end of a row


class ChatsScreen(ModalScreen[int | None]):
    """Chats with a line to search in; the result is the id of the one to open."""

    BINDINGS = [  # noqa: RUF012, as Textual declares it
        Binding("enter", "open", "Open", priority=True),
        Binding("ctrl+r", "rename", "Rename", priority=True),
        Binding("ctrl+e", "export", "Export", priority=True),
        Binding("ctrl+d", "delete", "Delete", priority=True),
        Binding("escape,f2", "dismiss(None)", "Back"),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
    ]

    def __init__(self, store: ChatStore, current_id: int | None) -> None:
        super().__init__()
        self._store = store
        self._current_id = current_id
        self._chats: list[Chat] = []
        self._search: Timer | None = None

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """Keys in the order of this screen's own; else those that take one of the search line's come first."""
        own = [key for binding in self.BINDINGS if isinstance(binding, Binding) for key in binding.key.split(",")]
        active = super().active_bindings
        return {key: active[key] for key in [*(key for key in own if key in active), *active]}

    def compose(self) -> ComposeResult:
        """The search line above the list."""
        with Vertical(classes="dialog large") as box:
            box.border_title = "Chats"
            yield Input(placeholder="Search titles and messages", compact=True)
            yield OptionList(markup=False)
            yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Shows all chats, the one that is open chosen."""
        self._list("")

    def on_resize(self) -> None:
        """Cuts the titles to the new width."""
        self.call_after_refresh(lambda: self._list(self.query_one(Input).value))

    def on_input_changed(self) -> None:
        """Searches once no more keys come: in years of chats that takes a moment."""
        if self._search is not None:
            self._search.stop()
        self._search = self.set_timer(_SEARCH_AFTER_S, self._search_now)

    def _search_now(self) -> None:
        """Does the search that waits, if there is one: what was typed holds for the keys after it."""
        if self._search is not None:
            self._search.stop()
            self._search = None
            self._list(self.query_one(Input).value)

    def on_option_list_option_selected(self) -> None:
        """A click opens."""
        self.action_open()

    def action_open(self) -> None:
        """Closes with the chosen chat."""
        self._search_now()
        if chat := self._chosen():
            self.dismiss(chat.id)

    def action_move(self, step: int) -> None:
        """Moves the choice while the search line keeps the keys."""
        self._search_now()
        choices = self.query_one(OptionList)
        if step > 0:
            choices.action_cursor_down()
        else:
            choices.action_cursor_up()

    def action_rename(self) -> None:
        """Asks for another title."""
        self._search_now()
        if chat := self._chosen():
            self.app.push_screen(AskText("Rename chat", chat.title), lambda title: self._rename(chat, title))

    def _rename(self, chat: Chat, title: str | None) -> None:
        if title is not None:
            self._change(lambda: self._store.rename_chat(chat.id, title))

    def action_delete(self) -> None:
        """Deletes, after a question."""
        self._search_now()
        if chat := self._chosen():
            question = Confirm(f"Delete “{chat.title}” for good?")
            self.app.push_screen(question, lambda is_sure: self._delete(chat, is_sure))

    def _delete(self, chat: Chat, is_sure: bool | None) -> None:
        if is_sure:
            self._change(lambda: self._store.delete_chat(chat.id))

    def action_export(self) -> None:
        """Writes the chat to a file."""
        self._search_now()
        if chat := self._chosen():
            question = AskText("Export as Markdown to", file_name(chat.title))
            self.app.push_screen(question, lambda path: self._export(chat, path))

    def _export(self, chat: Chat, path: str | None) -> None:
        if path is not None:
            self._change(lambda: self.notify(f"Written to {export_chat(self._store, chat, Path(path))}", markup=False))

    def _change(self, change: Callable[[], None]) -> None:
        try:
            change()
        except VkllmError as error:
            self.notify(str(error), severity="error", markup=False)
        self._list(self.query_one(Input).value)

    def _chosen(self) -> Chat | None:
        index = self.query_one(OptionList).highlighted
        return None if index is None or index >= len(self._chats) else self._chats[index]

    def _list(self, search: str) -> None:
        chosen = self._chosen()
        choices = self.query_one(OptionList)
        try:
            self._chats = self._store.chats(search)
        except VkllmError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        width = max(10, choices.scrollable_content_region.width - _WHEN_WIDTH)
        choices.clear_options()
        choices.add_options(Option(Content(f"{padded(chat.title, width)}  {_when(chat)}")) for chat in self._chats)
        wanted = self._current_id if chosen is None else chosen.id
        ids = [chat.id for chat in self._chats]
        choices.highlighted = ids.index(wanted) if wanted in ids else 0 if ids else None


def export_chat(store: ChatStore, chat: Chat, path: Path) -> Path:
    """Writes the path of a chat that is shown to a new Markdown file; raises VkllmError if it cannot."""
    path = path.expanduser().absolute()
    text = as_markdown(chat.title, chat.system, store.messages(chat.id))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise VkllmError(f"{path}: there is such a file already; choose another name") from None
    except OSError as error:
        raise VkllmError(f"{path}: the chat cannot be written ({error.strerror}); choose another place") from None
    return path


def _when(chat: Chat) -> str:
    return datetime.fromtimestamp(chat.changed_s).strftime("%Y-%m-%d %H:%M")
