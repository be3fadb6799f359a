"""F1: what the keys do."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen

from vkllm.faces.tui.long_text import LongText

HELP = """\
Everything works with the keyboard, and with a mouse too. **Ctrl+P** lists every command by its name, and themes.

### Writing

| key | does |
| --- | --- |
| Enter | send |
| Ctrl+J, Shift+Enter, Alt+Enter | start a new line |
| Esc | stop an answer, loading or an edit; go back to the prompt |
| Ctrl+R | answer the last question again; after an error, try again |
| Up | on the first line: select the last message |
| PageUp, PageDown | scroll the messages |
| Ctrl+Z, Ctrl+Y | undo and redo what was typed |

### On a message

Up, Tab or a click selects a message; the `▌` at its left turns yellow.

| key | does |
| --- | --- |
| Up, k, Down, j | the message above, below |
| c | copy it |
| b | copy its code; press again for the next block |
| e | edit a question and continue from there |
| r | answer it again |
| Left, Right | other versions of an edited question or of an answer made again |
| t | show the model's reasoning |
| d, Delete | delete |
| i | go back to the prompt |

### Chats, models, parameters

| key | does |
| --- | --- |
| Ctrl+N | new chat |
| F2, Ctrl+O | chats: Enter opens, Ctrl+R renames, Ctrl+E exports, Ctrl+D deletes |
| F3, Ctrl+L | models, and whether they fit: Enter loads |
| F4, Ctrl+G | parameters, system prompt, JSON schema: Ctrl+S accepts |
| F1 | this page |
| Ctrl+C | copy the selected text, else stop the answer; twice: quit |
| Ctrl+Q | quit |

When you are asked, `y` means yes and `n` means no. Ctrl+C copies the text that you selected with the mouse. Copying \
goes through the terminal (OSC 52), over ssh too; a few terminals do not allow it, and the chat says so if it can tell.
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
                yield LongText(HELP)

    def on_mount(self) -> None:
        """The page gets the keys."""
        self.query_one(VerticalScroll).focus()
