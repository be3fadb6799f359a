"""Two small questions on top of a screen: yes or no, and one line of text."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static


class Confirm(ModalScreen[bool]):
    """Asks whether to do something that cannot be undone."""

    BINDINGS = [("escape,n", "answer(False)", "No"), ("y", "answer(True)", "Yes")]  # noqa: RUF012

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question and its two answers; Enter is no."""
        with Vertical(classes="dialog small"):
            yield Static(self._question, markup=False)
            with Horizontal():
                yield Button("No (n)", action="screen.answer(False)", compact=True)
                yield Button("Yes (y)", variant="error", action="screen.answer(True)", compact=True)

    def action_answer(self, answer: bool) -> None:
        """Closes with an answer."""
        self.dismiss(answer)


class AskText(ModalScreen[str | None]):
    """Asks for a line of text; the result is None if the user leaves."""

    BINDINGS = [("escape", "dismiss(None)", "Cancel")]  # noqa: RUF012

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        """The line, filled with what there is now."""
        with Vertical(classes="dialog small") as box:
            box.border_title = self._title
            box.border_subtitle = "Enter accepts · Esc cancels"
            yield Input(self._text, select_on_focus=False, compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter: the text is the result, if there is any."""
        if text := event.value.strip():
            self.dismiss(text)
