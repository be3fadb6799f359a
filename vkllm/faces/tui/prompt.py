"""Where questions are typed. It knows keys and text, not what is done with it."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.binding import Binding
from textual.message import Message
from textual.widgets import TextArea


class Prompt(TextArea):
    """Several lines of text: Enter sends them, Shift+Enter and Ctrl+J break the line.

    Terminals that do not tell Shift+Enter from Enter send it as Enter; Ctrl+J works in all of them.
    """

    BINDINGS = [  # noqa: RUF012, as Textual declares it
        Binding("shift+enter,ctrl+j,alt+enter", "break_line", "New line", show=False),
    ]

    @dataclass
    class Submitted(Message):
        """Enter was pressed; the text is still there."""

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
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            if self.text.strip():
                self.post_message(self.Submitted(self.text))
        elif event.key == "up" and self.cursor_location == (0, 0):
            event.stop()
            event.prevent_default()
            self.post_message(self.LookBack())
        else:
            await super()._on_key(event)

    def action_break_line(self) -> None:
        """Puts a line break in the place of what is selected."""
        start, end = self.selection
        self._replace_via_keyboard("\n", start, end)
        self.scroll_cursor_visible()

    def set_text(self, text: str) -> None:
        """Replaces the text and goes to its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)
