"""A chat that can be read: shown, walked through, copied from, renamed, exported, deleted; and the way to others.

It knows the store and the widgets. Answers and models are `chat_screen`'s. Keys, dialogs and timers run in tasks of
their own; whatever changes the chat goes through `call_later`, so that one change ends before the next begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding
from textual.screen import Screen
from textual.widgets import Footer, Static

from vkllm import VkllmError
from vkllm.faces.chat.reasoning import file_name
from vkllm.faces.chat.store import Chat, ChatMessage, ChatStore
from vkllm.faces.tui.cells import at_both_ends
from vkllm.faces.tui.chats_screen import ChatsScreen, export_chat
from vkllm.faces.tui.conversation import Conversation
from vkllm.faces.tui.dialogs import AskText, Confirm
from vkllm.faces.tui.footer_keys import that_fit
from vkllm.faces.tui.help_screen import HelpScreen
from vkllm.faces.tui.load_bar import LoadBar
from vkllm.faces.tui.long_text import LongText
from vkllm.faces.tui.message_view import MessageView
from vkllm.faces.tui.parameters_screen import Parameters
from vkllm.faces.tui.prompt import Prompt
from vkllm.faces.tui.session import Session
from vkllm.faces.tui.status_bar import StatusBar


class ReadingScreen(Screen[None]):
    """One chat at a time. `messages` is the path of it that is shown; parameters: the chat's, or of the next one."""

    BINDINGS = [  # noqa: RUF012, as Textual declares it
        Binding("f1", "help", "Help"),
        Binding("f2,ctrl+o", "chats", "Chats"),
        Binding("pageup", "scroll_page(-1)", show=False, priority=True),
        Binding("pagedown", "scroll_page(1)", show=False, priority=True),
    ]

    def __init__(self, store: ChatStore, session: Session, parameters: Parameters) -> None:
        super().__init__()
        self.store = store
        self.session = session
        self.parameters = parameters
        self.chat: Chat | None = None
        self.messages: list[ChatMessage] = []
        self.editing: ChatMessage | None = None
        self._title_shown = ""

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Static("", id="title", markup=False)
        yield Conversation(self._make_view)
        yield LoadBar()
        yield Prompt()
        yield StatusBar()
        yield Footer(show_command_palette=False)

    def on_screen_suspend(self) -> None:
        """Its keys do nothing while another screen lies on top."""
        self.query_one(Footer).visible = False

    def on_screen_resume(self) -> None:
        """Its keys are back."""
        self.query_one(Footer).visible = True

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """All keys; the footer shows those that there is room for, on a message above all the message's own."""
        active = super().active_bindings
        others = {one.binding.action for one in active.values() if one.node is self} - {"help", "stop"}
        never = others if isinstance(self.focused, MessageView) else set()
        return that_fit(active, self.size.width, self.app.get_key_display, always=("help",), never=never)

    @property
    def conversation(self) -> Conversation:
        """The widget with the messages."""
        return self.query_one(Conversation)

    @property
    def prompt(self) -> Prompt:
        """The widget that questions are typed into."""
        return self.query_one(Prompt)

    @contextmanager
    def errors_told(self) -> Iterator[None]:
        """An error in here, mostly of the store, is told, and the chat goes on."""
        try:
            yield
        except VkllmError as error:
            self.notify(str(error), severity="error", markup=False, timeout=10)

    def stop_answer(self) -> bool:
        """Stops and keeps the answer that is being written; False if there was none."""
        return False

    # --- Showing a chat ----------------------------------------------------------------------------------------------

    async def show_chat(self, chat_id: int | None) -> None:
        """Shows a chat as it is on disk; None, or one that has been deleted, is a new one."""
        self.stop_answer()
        with self.errors_told():
            self.chat = None if chat_id is None else self.store.chat(chat_id)
            self.messages = [] if self.chat is None else self.store.messages(self.chat.id)
            if self.chat is not None:
                self.parameters = Parameters(self.chat.system, self.chat.sampling, self.parameters.n_ctx)
            self.stop_editing()
            await self.conversation.show(self.messages)
            self.show_title()
            self.action_to_prompt()

    def show_title(self) -> None:
        """The chat's name on the left, the model's on the right."""
        title = "New chat" if self.chat is None else self.chat.title
        text = at_both_ends(title, self.session.name, self.size.width - 2)
        if text != self._title_shown:
            self._title_shown = text
            self.query_one("#title", Static).update(text, layout=False)

    async def cut_after(self, message_id: int | None) -> None:
        """Shows the path only up to a message; nothing is deleted."""
        while self.messages and self.messages[-1].id != message_id:
            self.messages.pop()
        await self.conversation.cut_after(message_id)

    def _make_view(self, message: ChatMessage, is_live: bool) -> MessageView:
        variants = self.store.variants(message)
        place = (variants.index(message.id) + 1, len(variants)) if message.id in variants else (1, 1)
        return MessageView(message, "You" if message.role == "user" else "Answer", place, is_live=is_live)

    # --- One message -------------------------------------------------------------------------------------------------

    @on(MessageView.Wished)
    async def fulfil(self, event: MessageView.Wished) -> None:
        """Does what a key on a message asks for."""
        view = event.view
        match event.wish:
            case "copy":
                self._copy(view.text, "The message")
            case "copy_code":
                self._copy_code(view)
            case "edit":
                self.start_editing(view.message)
            case "regenerate":
                await self.regenerate(view.message)
            case "delete":
                self._delete(view.message)
            case "older" | "newer":
                await self._show_variant(view.message, -1 if event.wish == "older" else 1)
            case "above" | "below":
                self._go(view, -1 if event.wish == "above" else 1)

    async def regenerate(self, message: ChatMessage) -> None:
        """Answers a question, or the one above an answer, again."""

    @on(Prompt.LookBack)
    def focus_last(self) -> None:
        """Up in the first line of the prompt leads to the last message."""
        if views := self.conversation.views:
            views[-1].focus()

    def _go(self, view: MessageView, step: int) -> None:
        views = self.conversation.views
        index = views.index(view) + step
        if index >= len(views):
            self.action_to_prompt()
        elif index >= 0:
            views[index].focus()
        else:
            self.action_show_earlier()

    def _copy(self, text: str, what: str) -> None:
        self.app.copy_to_clipboard(text)
        self.notify(f"{what} is copied.")

    def _copy_code(self, view: MessageView) -> None:
        block = view.next_code_block()
        if block is None:
            self.notify("There is no block of code in this message.")
            return
        code, number, count = block
        self._copy(code, f"Block {number} of {count}" if count > 1 else "The code")

    @on(LongText.CodeClicked)
    def copy_clicked_code(self, event: LongText.CodeClicked) -> None:
        """The word above a block of code was clicked on."""
        self._copy(event.code, "The code")

    @on(LongText.LinkClicked)
    def copy_link(self, event: LongText.LinkClicked) -> None:
        """A link in an answer is not opened: the model chose it, and over ssh there is no browser."""
        self._copy(event.href, "The link")

    def start_editing(self, message: ChatMessage) -> None:
        """Puts a question into the prompt; sent again, it takes the place of the old one."""
        self.editing = message
        self.prompt.set_text(message.content)
        self.prompt.border_title = "Editing an earlier question · Esc leaves it as it is"
        self.action_to_prompt()

    def stop_editing(self) -> None:
        """What is in the prompt is a new question again."""
        self.editing = None
        self.prompt.border_title = ""

    async def _show_variant(self, message: ChatMessage, step: int) -> None:
        with self.errors_told():
            variants = self.store.variants(message)
            index = variants.index(message.id) + step
            if 0 <= index < len(variants) and self.chat is not None:
                self.stop_answer()
                self.store.show_variant(self.chat.id, variants[index])
                await self.show_chat(self.chat.id)
                if view := self.conversation.view(variants[index]):
                    view.focus()

    def _delete(self, message: ChatMessage) -> None:
        """Deletes the last answer alone, anything else as question and answer: templates want them in turns."""
        ids = [other.id for other in self.messages]
        if message.id not in ids:
            return
        index = ids.index(message.id)
        is_last_answer = message.role == "assistant" and index == len(ids) - 1
        if message.role == "assistant" and not is_last_answer:
            index -= 1
        what = "this answer" if is_last_answer else "this question and its answers"
        answer_id = ids[index + 1] if index + 1 < len(ids) and not is_last_answer else None
        first = self.messages[index]

        def delete(is_sure: bool | None) -> None:
            if is_sure:
                self.call_later(self._delete_now, first, answer_id)

        self.app.push_screen(Confirm(f"Delete {what} for good?"), delete)

    async def _delete_now(self, message: ChatMessage, answer_id: int | None) -> None:
        self.stop_answer()
        with self.errors_told():
            self.store.delete_branch(message, keep_below=answer_id)
            await self.show_chat(message.chat_id)

    # --- Chats -------------------------------------------------------------------------------------------------------

    def action_new_chat(self) -> None:
        """Begins a chat with the parameters of the last one."""
        self.call_later(self.show_chat, None)

    def action_chats(self) -> None:
        """Lets the user choose a chat and shows it."""
        current_id = None if self.chat is None else self.chat.id
        self.app.push_screen(ChatsScreen(self.store, current_id), self._after_list_of_chats)

    def _after_list_of_chats(self, chat_id: int | None) -> None:
        self.call_later(self._after_list, chat_id)

    async def _after_list(self, chat_id: int | None) -> None:
        """chat_id: of the chat that was chosen, if one was."""
        current_id = None if self.chat is None else self.chat.id
        with self.errors_told():
            if chat_id is not None and chat_id != current_id:
                await self.show_chat(chat_id)
            elif current_id is not None:
                self.chat = self.store.chat(current_id)  # it may have another name now, or be gone
                if self.chat is None:
                    await self.show_chat(None)
                self.show_title()

    def action_rename(self) -> None:
        """Gives this chat another name."""
        if self.chat is None:
            self.notify("This chat has no message yet.")
            return
        self.app.push_screen(AskText("Rename chat", self.chat.title), partial(self._rename, self.chat.id))

    def _rename(self, chat_id: int, title: str | None) -> None:
        if title is not None:
            with self.errors_told():
                self.store.rename_chat(chat_id, title)
                self.call_later(self._after_list, None)

    def action_export(self) -> None:
        """Writes this chat to a Markdown file."""
        if self.chat is None:
            self.notify("This chat has no message yet.")
            return
        question = AskText("Export as Markdown to", file_name(self.chat.title))
        self.app.push_screen(question, partial(self._export, self.chat))

    def _export(self, chat: Chat, path: str | None) -> None:
        if path is not None:
            with self.errors_told():
                self.notify(f"Written to {export_chat(self.store, chat, Path(path))}", markup=False)

    # --- Places ------------------------------------------------------------------------------------------------------

    def action_to_prompt(self) -> None:
        """Typing goes into the prompt."""
        self.prompt.focus()

    def action_show_earlier(self) -> None:
        """Draws more of a long chat."""
        self.call_later(self.conversation.show_earlier)

    def action_scroll_page(self, pages: int) -> None:
        """Scrolls the messages whatever has the keys."""
        conversation = self.conversation
        conversation.release_anchor()
        conversation.scroll_relative(y=pages * max(1, conversation.size.height - 2), animate=False)

    def action_help(self) -> None:
        """What the keys do."""
        self.app.push_screen(HelpScreen())

    def action_copy_answer(self) -> None:
        """Copies the last answer."""
        if views := [view for view in self.conversation.views if view.message.role == "assistant"]:
            self._copy(views[-1].text, "The answer")

    def action_copy_code(self) -> None:
        """Copies a block of code of the last answer."""
        if views := [view for view in self.conversation.views if view.message.role == "assistant"]:
            self._copy_code(views[-1])
