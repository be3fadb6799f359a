"""What can be typed into the plain chat besides messages: /set, /show, /save, /load and the like, as in ollama.

It knows the state of a chat and how to change it; it does not know how messages are read or answered.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from vkllm import InvalidParameter, ModelNotFound
from vkllm.faces.chat.store import Chat, ChatStore, Role, chats_path
from vkllm.faces.cli.line_state import PlainChat
from vkllm.faces.sampling import FORMS, OPTIONS, parameter, schema_of_format
from vkllm.faces.terminal import counted, say

_HELP = """\
/set        change how answers are made; /? set has more
/show       show the model and how answers are made; /? show has more
/save NAME  keep this conversation
/load NAME  go on with a kept conversation, or open another model
/clear      forget the conversation
/bye        leave (so does Ctrl-D)
/?, /help   show this
\"\"\"         begin and end a message of several lines
Ctrl-C      stop the answer"""
_HELP_ON = {
    "set": f"""\
/set parameter NAME VALUE  {", ".join(list(OPTIONS)[:5])},
                           {", ".join(list(OPTIONS)[5:8])},
                           {", ".join(list(OPTIONS)[8:])}, num_ctx, num_gpu
/set system TEXT           the system message; \"\"\" begins and ends one of several lines
/set format json           answer with JSON only
/set noformat              answer with any text
/set verbose               show counts and speeds after each answer
/set quiet                 do not
/set history               keep what is typed for the arrow keys
/set nohistory             do not""",
    "show": """\
/show info        what the model is
/show parameters  how answers are made
/show system      the system message
/show template    the chat template
/show license     the model's licence
/show modelfile   all that was set, as ollama writes it""",
}
_LOADING = ("num_ctx", "num_gpu")


def is_command(text: str) -> bool:
    """Whether a line is for the chat and not for the model; a path that begins with / is for the model."""
    return re.match(r"/[a-z?]+(\s|$)", text) is not None


def run_command(chat: PlainChat, text: str) -> bool:
    """Does what a line says; False if it says that the user leaves. Raises VkllmError, and then nothing has changed."""
    command, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    match command:
        case "/bye" | "/exit" | "/quit":
            return False
        case "/help" | "/?":
            print(_HELP_ON.get(rest.removeprefix("/"), _HELP))
        case "/clear":
            chat.messages.clear()
            print("The conversation is forgotten.")
        case "/set":
            _set(chat, rest)
        case "/show":
            _show(chat, rest)
        case "/save":
            _save(chat, rest)
        case "/load":
            _load(chat, rest)
        case _:
            raise InvalidParameter(f"there is no command {command}; /? lists them")
    return True


# --- /set ------------------------------------------------------------------------------------------------------------


def _set(chat: PlainChat, rest: str) -> None:
    what, _, value = rest.partition(" ")
    value = value.strip()
    match what:
        case "parameter" if len(words := value.split()) > 1:
            _set_parameter(chat, words[0], words[1:])
        case "system" if value:
            chat.system = value
            print("The system message is set.")
        case "format" if value:
            chat.sampling = _without_form(chat.sampling) | {"json_schema": schema_of_format(value)}
            print("Answers are JSON now; say so to the model too.")
        case "noformat":
            chat.sampling = _without_form(chat.sampling)
            print("Answers are text of any form.")
        case "verbose" | "quiet":
            chat.wants_stats = what == "verbose"
            print(f"Counts and speeds are {'shown' if chat.wants_stats else 'not shown'} after answers.")
        case "history" | "nohistory":
            with contextlib.suppress(ImportError):
                import readline

                readline.set_auto_history(what == "history")
            print(f"What is typed is {'kept' if what == 'history' else 'not kept'} for the arrow keys.")
        case _:
            print(_HELP_ON["set"])


def _set_parameter(chat: PlainChat, name: str, words: list[str]) -> None:
    if name in _LOADING:
        if len(words) != 1 or not re.fullmatch(r"-?\d+", words[0]):
            raise InvalidParameter(f"{name} takes a number, not {' '.join(words)!r}")
        chat.open_with(name, int(words[0]))
        return
    field, value = parameter(name, words)
    if value is None:
        chat.sampling.pop(field, None)
    else:
        chat.sampling[field] = value
    say(f"{name} is {_text_of(field, chat)}.")


def _without_form(sampling: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sampling.items() if name not in FORMS}


# --- /show -----------------------------------------------------------------------------------------------------------


def _show(chat: PlainChat, what: str) -> None:
    match what:
        case "parameters":
            text = _parameters(chat)
        case "system":
            text = chat.system or "There is no system message."
        case "info" | "template" | "license" | "licence" | "modelfile":
            text = chat.facts(what.replace("licence", "license"))
        case _:
            text = _HELP_ON["show"]
    say(text)


def _parameters(chat: PlainChat) -> str:
    lines = {field: _text_of(field, chat) for field in OPTIONS} | {"num_ctx": str(chat.n_ctx or "not told")}
    return "\n".join(f"{name:20}{text}" for name, text in lines.items())


def _text_of(field: str, chat: PlainChat) -> str:
    value = chat.sampling.get(field, getattr(chat.defaults, field))
    if field == "stop":
        return " ".join(map(repr, value)) or "none"
    unset = {"max_tokens": "as many as there is room for", "seed": "random for each answer"}
    return unset[field] if value is None else str(value)


# --- /save and /load -------------------------------------------------------------------------------------------------


def _save(chat: PlainChat, name: str) -> None:
    """Keeps the conversation under a name. Where there is one of that name already, both are kept as its versions."""
    if not name:
        raise InvalidParameter("give the conversation a name, as in /save NAME")
    if not chat.messages:
        raise InvalidParameter("there is nothing to save yet; ask something first")
    with contextlib.closing(ChatStore(chats_path())) as store:
        kept = _chat_named(store, name) or store.new_chat(name, chat.system, chat.sampling)
        store.set_parameters(kept.id, chat.system, chat.sampling)
        parent_id = None
        n_same = 0
        for message, old in zip(chat.messages, store.messages(kept.id), strict=False):
            if (message["role"], message["content"]) != (old.role, old.content):
                break
            parent_id, n_same = old.id, n_same + 1
        for message in chat.messages[n_same:]:
            role: Role = "user" if message["role"] == "user" else "assistant"
            parent_id = store.add_message(kept.id, parent_id, role, message["content"]).id
    say(f"The conversation is kept as {name}; /load {name} goes on with it, and F2 of `vkllm chat` lists it.")


def _load(chat: PlainChat, name: str) -> None:
    """A kept conversation if there is one of that name, else a model."""
    if not name:
        raise InvalidParameter("name a kept conversation or a model, as in /load NAME")
    path = chats_path()
    if path.exists():
        with contextlib.closing(ChatStore(path)) as store:
            if kept := _chat_named(store, name):
                messages = [message for message in store.messages(kept.id) if message.content]
                chat.messages = [{"role": message.role, "content": message.content} for message in messages]
                chat.system, chat.sampling = kept.system, dict(kept.sampling)
                say(f"{kept.title}: {counted(len(messages), 'message')}" + (", the last one:" if messages else ""))
                say("\n".join(message.content for message in messages[-1:]))
                return
    try:
        chat.open_named(name)
    except ModelNotFound as error:
        raise ModelNotFound(f"no conversation is kept as {name!r}, and as a model: {error}") from None


def _chat_named(store: ChatStore, name: str) -> Chat | None:
    """The last changed chat of that name, whatever its case."""
    return next((chat for chat in store.chats() if chat.title.casefold() == name.casefold()), None)
