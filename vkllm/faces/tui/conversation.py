"""The messages of a chat, one below the other. It knows views and scrolling, not where messages come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Button, Static

from vkllm.errors import counted
from vkllm.faces.chat.store import ChatMessage
from vkllm.faces.tui.message_view import MessageView, Notice

N_SHOWN = 8  # messages drawn at once: a screenful or two, in less time than a key may wait
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
        self._is_adding = False

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
        self.call_after_refresh(self._fill)

    async def show_earlier(self) -> None:
        """Draws more messages above the first one; what is on the screen stays where it is."""
        if self._is_adding or not self._earlier:
            return
        self._is_adding = True
        below = None if self.is_vertical_scroll_end else self.virtual_size.height - self.scroll_offset.y
        more = self._earlier[-N_SHOWN:]
        del self._earlier[-N_SHOWN:]
        views = [self._make_view(message, False) for message in more]
        with self.app.batch_update():
            await self.mount_all(views, before=self.views[0])
            self._show_extras()
        self.call_after_refresh(self._stay, below)

    def _stay(self, below: int | None) -> None:
        """Scrolls to so many lines above the end, or to the end."""
        if below is None:
            self.anchor()
        else:
            self.scroll_to(y=self.virtual_size.height - below, animate=False, force=True)
        self._is_adding = False
        self._fill()

    def _fill(self) -> None:
        """Draws more if there is room for it."""
        if self._earlier and self.virtual_size.height <= self.size.height:
            self.call_later(self.show_earlier)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Scrolling to the top brings more."""
        super().watch_scroll_y(old_value, new_value)
        if new_value < 1 <= old_value and self._earlier:
            self.call_later(self.show_earlier)

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
        button.label = counted(len(self._earlier), "earlier message")
