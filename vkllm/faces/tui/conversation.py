"""The messages of a chat, one below the other. It knows views and scrolling, not where messages come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Button, Static

from vkllm.faces.tui.chat_store import ChatMessage
from vkllm.faces.tui.message_view import MessageView, Notice

N_SHOWN = 20  # messages drawn at first: drawing hundreds would take seconds
_WELCOME = """\
Type a question below; Enter sends it.

F1  what the keys do        F3  models
F2  earlier chats           F4  parameters, system prompt"""

MakeView = Callable[[ChatMessage, bool], MessageView]
"""Makes the view of a message. The flag: it is still being written."""


class Conversation(VerticalScroll, can_focus=False):
    """Views of a path of messages. It stays at the end while text is added, unless the user has scrolled away."""

    def __init__(self, make_view: MakeView) -> None:
        super().__init__(id="conversation")
        self._make_view = make_view
        self._earlier: list[ChatMessage] = []

    def compose(self) -> ComposeResult:
        """What is shown while there is no message."""
        yield Static(_WELCOME, id="welcome", markup=False)
        yield Button("", id="earlier", action="screen.show_earlier", compact=True)

    @property
    def views(self) -> list[MessageView]:
        """The views from top to bottom."""
        return list(self.query(MessageView))

    def view(self, message_id: int) -> MessageView | None:
        """The view of a message, if it is drawn."""
        return next((view for view in self.views if view.message.id == message_id), None)

    async def show(self, messages: Sequence[ChatMessage]) -> None:
        """Replaces all that is shown; of a long chat only the end is drawn."""
        with self.app.batch_update():
            await self.query("MessageView, Notice").remove()
            self._earlier = list(messages[:-N_SHOWN])
            await self.mount_all([self._make_view(message, False) for message in messages[-N_SHOWN:]])
            self._show_extras()
        self.anchor()

    async def show_earlier(self) -> None:
        """Draws more messages above the first one."""
        more = self._earlier[-N_SHOWN:]
        del self._earlier[-N_SHOWN:]
        first = self.views[0]
        await self.mount_all([self._make_view(message, False) for message in more], before=first)
        self._show_extras()
        first.focus()

    async def add(self, message: ChatMessage, *, is_live: bool = False) -> MessageView:
        """Draws one more message at the end and goes there."""
        view = self._make_view(message, is_live)
        await self.mount(view)
        self._show_extras()
        self.anchor()
        return view

    async def cut_after(self, message_id: int | None) -> None:
        """Takes away what is below a message; None takes everything away."""
        if message_id is None:
            self._earlier.clear()
        is_below = message_id is None
        for view in self.views:
            if is_below:
                await view.remove()
            is_below = is_below or view.message.id == message_id
        self._show_extras()

    async def show_notice(self, notice: Notice | None) -> None:
        """Puts an error below the messages, in the place of the last one; None only takes that away."""
        await self.query("Notice").remove()
        if notice is not None:
            await self.mount(notice)
            self.anchor()

    def _show_extras(self) -> None:
        self.query_one("#welcome").display = not self.views
        button = self.query_one("#earlier", Button)
        button.display = bool(self._earlier)
        button.label = f"{len(self._earlier)} earlier messages"
