"""Where questions are typed. It knows keys and text, not what is done with it."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.message import Message
from textual.widgets import TextArea


class Prompt(TextArea):
    """Several lines of text: Enter sends them, Shift+Enter and Ctrl+J break the line.

    Terminals that do not tell Shift+Enter from Enter send it as Enter; Ctrl+J works in all of them.
    """

    BREAK_KEYS = ("shift+enter", "ctrl+j", "alt+enter")

    @dataclass
    class Submitted(Message):
        """Enter was pressed; the text is no longer in the prompt, and `put_back` brings it back."""

        text: str

    class LookBack(Message):
        """Up was pressed where there is nothing above the cursor."""

    def __init__(self) -> None:
        super().__init__(
            id="prompt",
            placeholder="Ask something. Enter sends, Ctrl+J breaks the line.",
            compact=True,
            highlight_cursor_line=False,
        )

    async def _on_key(self, event: events.Key) -> None:
        # Done here and now: an action comes later, and the keys after this one would be there before it.
        if event.key == "enter":
            if self.text.strip():
                self.post_message(self.Submitted(self.text))
                self.load_text("")
        elif event.key in self.BREAK_KEYS:
            self._replace_via_keyboard("\n", *self.selection)
            self.scroll_cursor_visible()
        elif event.key == "up" and self.cursor_location == (0, 0):
            self.post_message(self.LookBack())
        else:
            await super()._on_key(event)
            return
        event.stop()
        event.prevent_default()

    def put_back(self, text: str) -> None:
        """Brings back a text that could not be sent, before what was typed since."""
        self.set_text(text + self.text)

    def set_text(self, text: str) -> None:
        """Replaces the text and goes to its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)
