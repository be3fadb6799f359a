"""One message on the screen: its name line, its reasoning folded, its text as Markdown. Also the card of an error.

A view shows what it is given and passes on which key was pressed on it; it knows no store and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Button, Collapsible, Static

from vkllm.errors import counted
from vkllm.faces.chat.reasoning import as_drawn, split_reasoning
from vkllm.faces.chat.store import ChatMessage
from vkllm.faces.tui.long_text import LongText

Wish = Literal["copy", "copy_code", "edit", "regenerate", "delete", "older", "newer", "above", "below"]

_STATES = {"done": "", "cut": "cut at the limit", "stopped": "stopped", "failed": "broken off by an error"}


class MessageView(Vertical, can_focus=True):
    """One message. It can be focused, and then single keys act on it."""

    BINDINGS = [  # noqa: RUF012, as Textual declares it
        Binding("c", "wish('copy')", "Copy"),
        Binding("b", "wish('copy_code')", "Copy code"),
        Binding("e", "wish('edit')", "Edit"),
        Binding("r", "wish('regenerate')", "Again"),
        Binding("d,delete", "wish('delete')", "Delete"),
        Binding("t", "fold", "Thoughts"),
        Binding("left", "wish('older')", "Other versions", show=False),
        Binding("right", "wish('newer')", "Other versions", show=False),
        Binding("up,k", "wish('above')", "Message above", show=False),
        Binding("down,j", "wish('below')", "Message below", show=False),
        Binding("i", "screen.to_prompt", "Back to the prompt", show=False),
    ]

    @dataclass
    class Wished(Message):
        """What the user wants done with a message."""

        view: MessageView
        wish: Wish

    def __init__(
        self, message: ChatMessage, name: str, variants: tuple[int, int] = (1, 1), *, is_live: bool = False
    ) -> None:
        """name: of who wrote it. variants: which of how many messages in this place it is, counted from 1.

        is_live: it is still being written.
        """
        super().__init__(classes=message.role)
        self.message = message
        self._speaker = name
        self._variants = variants
        self._is_live = is_live
        self._n_code_copied = 0
        self._activity = ""

    def compose(self) -> ComposeResult:
        """The name line, then the parts."""
        yield Static(self._heading(), classes="heading", markup=False)
        if self.message.role == "user":
            yield LongText(self.message.content, is_markdown=False, classes="body")
            return
        answer = split_reasoning(self.message.content)
        if answer.reasoning:
            yield _folded(answer.reasoning, _folded_title(answer.reasoning, is_thinking=False))
        yield LongText(as_drawn(answer.text), classes="body")

    @property
    def text(self) -> str:
        """The message without its reasoning."""
        return self.message.content if self.message.role == "user" else split_reasoning(self.message.content).text

    def show(self, message: ChatMessage, *, is_live: bool) -> None:
        """Shows a message that has grown, or has ended when it is no longer live. Cheap where text was only added."""
        self.message = message
        self._is_live = is_live
        answer = split_reasoning(message.content)
        self._show_reasoning(answer.reasoning, is_thinking=answer.is_thinking and is_live)
        self.query_one(".body", LongText).show(as_drawn(answer.text), is_live=is_live)
        if not is_live or self._activity:
            self._activity = ""
            self.query_one(".heading", Static).update(self._heading())

    def show_activity(self, activity: str) -> None:
        """Says beside the name what goes on before there is any text."""
        heading = f"{self._speaker} · {activity}"
        if heading != self._activity:
            self._activity = heading
            self.query_one(".heading", Static).update(heading, layout=False)

    def _show_reasoning(self, reasoning: str, *, is_thinking: bool) -> None:
        title = _folded_title(reasoning, is_thinking=is_thinking)
        if folded := next(iter(self.query(Collapsible)), None):
            folded.display = bool(reasoning) or is_thinking
            folded.title = title
            if not folded.collapsed:
                folded.query_one(".thoughts", LongText).show(reasoning, is_live=is_thinking)
        elif reasoning or is_thinking:
            self.mount(_folded(reasoning, title), before=self.query_one(".body"))

    def next_code_block(self) -> tuple[str, int, int] | None:
        """A block of code, which one it is and of how many; another one at each call. None if there is none."""
        blocks = self.query_one(".body", LongText).codes
        if not blocks:
            return None
        number = self._n_code_copied % len(blocks)
        self._n_code_copied += 1
        return blocks[number], number + 1, len(blocks)

    def action_wish(self, wish: Wish) -> None:
        """Passes on which key was pressed."""
        self.post_message(self.Wished(self, wish))

    def action_fold(self) -> None:
        """Shows the reasoning, or folds it."""
        for folded in self.query(Collapsible):
            folded.collapsed = not folded.collapsed

    def on_collapsible_expanded(self, event: Collapsible.Expanded) -> None:
        """Brings the reasoning up to date, which is not drawn while it is folded and grows."""
        event.collapsible.query_one(".thoughts", LongText).show(split_reasoning(self.message.content).reasoning)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hides keys that do nothing on this message."""
        is_question = self.message.role == "user"
        if action == "fold":
            return not is_question and bool(split_reasoning(self.message.content).reasoning)
        return not ((parameters == ("edit",) and not is_question) or (parameters == ("copy_code",) and is_question))

    def _heading(self) -> str:
        number, count = self._variants
        parts = [
            self._speaker,
            self.message.note,
            "" if self._is_live else _STATES[self.message.state],
            f"◂ {number}/{count} ▸" if count > 1 else "",
        ]
        return " · ".join(part for part in parts if part)


def _folded(reasoning: str, title: str) -> Collapsible:
    return Collapsible(LongText(reasoning, classes="thoughts"), title=title, classes="reasoning")


def _folded_title(reasoning: str, *, is_thinking: bool) -> str:
    return f"{'Thinking…' if is_thinking else 'Thoughts'} ({counted(len(reasoning.split()), 'word')})"


@dataclass(frozen=True)
class WayOn:
    """A button below an error. action: of the screen."""

    label: str
    action: str


class Notice(Vertical):
    """What went wrong, and buttons for what can be done about it."""

    def __init__(self, text: str, ways_on: list[WayOn]) -> None:
        super().__init__(id="notice")
        self._text = text
        self._ways_on = ways_on

    def compose(self) -> ComposeResult:
        """The sentence, and below it a button for each way."""
        yield Static(self._text, markup=False)
        with Horizontal():
            for way in self._ways_on:
                yield Button(way.label, action=f"screen.{way.action}", compact=True)
