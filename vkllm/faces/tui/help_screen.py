"""F1: what the keys do."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Markdown

HELP = """\
Everything works without a mouse. **Ctrl+P** opens the command palette: every command by its name, and themes.

### Writing

| key | does |
| --- | --- |
| Enter | send |
| Ctrl+J, Shift+Enter | break the line |
| Esc | stop the answer, a load or an edit; back to the prompt |
| Ctrl+R | answer the last question again |
| Up in the first line | go to the last message |

### On a message (Up, Tab or a click)

| key | does |
| --- | --- |
| Up, Down | the message above, below |
| c | copy it |
| b | copy its code; again: the next block |
| e | edit a question and go on from there |
| r | answer it again |
| Left, Right | other versions of an edited question or an answer made again |
| t | unfold the model's thoughts |
| d | delete |

### Chats and models

| key | does |
| --- | --- |
| Ctrl+N | new chat |
| F2, Ctrl+O | chats: search, open, rename, export, delete |
| F3, Ctrl+L | models |
| F4, Ctrl+G | parameters and system prompt |
| Ctrl+Q, twice Ctrl+C | quit |

Copying goes through the terminal (OSC 52), over ssh too; a few terminals do not allow it.
"""


class HelpScreen(ModalScreen[None]):
    """The keys; Esc closes it."""

    BINDINGS = [("escape,f1,q", "dismiss", "Back")]  # noqa: RUF012

    def compose(self) -> ComposeResult:
        """One page to scroll."""
        with Vertical(classes="dialog large") as box:
            box.border_title = "Keys"
            box.border_subtitle = "Esc closes · ↑↓ scroll"
            with VerticalScroll():
                yield Markdown(HELP, open_links=False)

    def on_mount(self) -> None:
        """The page gets the keys."""
        self.query_one(VerticalScroll).focus()
