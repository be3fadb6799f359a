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
from textual.widgets import Button, Collapsible, Markdown, Static
from textual.widgets.markdown import MarkdownStream

from vkllm.faces.tui.chat_store import ChatMessage
from vkllm.faces.tui.reasoning import code_blocks, split_reasoning

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
        self._shown = ""
        self._stream: MarkdownStream | None = None
        self._n_code_copied = 0

    def compose(self) -> ComposeResult:
        """The name line, then the parts."""
        yield Static(self._heading(), classes="heading", markup=False)
        if self.message.role == "user":
            yield Static(self.message.content, classes="question", markup=False)
            return
        answer = split_reasoning(self.message.content)
        self._shown = answer.text
        with Collapsible(title=_folded_title(answer.reasoning, is_thinking=False), classes="reasoning") as folded:
            yield Static(answer.reasoning, classes="thoughts", markup=False)
        folded.display = bool(answer.reasoning)
        yield Markdown(answer.text, open_links=False)

    @property
    def text(self) -> str:
        """The message without its reasoning."""
        return self.message.content if self.message.role == "user" else split_reasoning(self.message.content).text

    async def show(self, message: ChatMessage, *, is_live: bool) -> None:
        """Shows a message that has grown, or has ended when it is no longer live. Cheap where text was only added."""
        self.message = message
        self._is_live = is_live
        answer = split_reasoning(message.content)
        if answer.reasoning or answer.is_thinking:
            folded = self.query_one(Collapsible)
            folded.display = is_live or bool(answer.reasoning)
            folded.title = _folded_title(answer.reasoning, is_thinking=answer.is_thinking and is_live)
            if not (folded.collapsed and is_live):
                folded.query_one(".thoughts", Static).update(answer.reasoning)
        body = self.query_one(Markdown)
        if not answer.text.startswith(self._shown):  # what looked like the answer was reasoning
            await self._end_stream()
            await body.update("")
            self._shown = ""
        if added := answer.text[len(self._shown) :]:
            self._stream = self._stream or Markdown.get_stream(body)
            self._shown = answer.text
            await self._stream.write(added)
        if not is_live:
            await self._end_stream()
        self.query_one(".heading", Static).update(self._heading())

    def next_code_block(self) -> tuple[str, int, int] | None:
        """A block of code, which one it is and of how many; another one at each call. None if there is none."""
        blocks = code_blocks(self.text)
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
            folded.query_one(".thoughts", Static).update(split_reasoning(self.message.content).reasoning)
            folded.collapsed = not folded.collapsed

    def on_collapsible_expanded(self, event: Collapsible.Expanded) -> None:
        """Brings the reasoning up to date, which is not drawn while it is folded and grows."""
        event.collapsible.query_one(".thoughts", Static).update(split_reasoning(self.message.content).reasoning)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hides keys that do nothing on this message."""
        is_question = self.message.role == "user"
        if action == "fold":
            return not is_question and bool(split_reasoning(self.message.content).reasoning)
        return not ((parameters == ("edit",) and not is_question) or (parameters == ("copy_code",) and is_question))

    async def _end_stream(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.stop()

    def _heading(self) -> str:
        number, count = self._variants
        parts = [
            self._speaker,
            self.message.note,
            "" if self._is_live else _STATES[self.message.state],
            f"◂ {number}/{count} ▸" if count > 1 else "",
        ]
        return " · ".join(part for part in parts if part)


def _folded_title(reasoning: str, *, is_thinking: bool) -> str:
    return f"{'Thinking…' if is_thinking else 'Thoughts'} ({len(reasoning.split())} words)"


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
