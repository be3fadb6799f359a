"""What can be typed into the plain chat besides messages: /set, /show, /save, /load and the like, as in ollama.

It knows the state of a chat and how to change it; it does not know how messages are read or answered.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

from vkllm import LLM, InvalidParameter, ModelNotFound, SamplingParams, VkllmError
from vkllm.faces.chat.reasoning import prompt_messages
from vkllm.faces.chat.store import Chat, ChatStore, Role, chats_path
from vkllm.faces.cli.loading import tell_of_memory
from vkllm.faces.cli.model_facts import fields_of_file, lines_of
from vkllm.faces.cli.models import ensure_here
from vkllm.faces.cli.opening import RunOptions, open_model
from vkllm.faces.sampling import FORMS, OPTIONS, parameter, schema_of_format
from vkllm.formats.gguf import ModelFile
from vkllm.store import source_of
from vkllm.store.catalog import CatalogEntry

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
_LOADING = {"num_ctx": "n_ctx", "num_gpu": "n_gpu_layers"}  # ollama's parameters that are ours of loading


class Session:
    """A plain chat: its open model, what was said so far, how answers are made."""

    def __init__(self, options: RunOptions, sampling: dict[str, Any]) -> None:
        """Opens the model. Raises any VkllmError."""
        self.model = options.model
        self.loading = options.loading
        self.sampling = dict(sampling)
        self.system = options.system or ""
        self.wants_stats = options.wants_stats
        self.messages: list[dict[str, str]] = []
        self.llm: LLM = open_model(self.model, self.loading)

    @property
    def prompt_messages(self) -> list[dict[str, str]]:
        """The conversation as the model gets it."""
        return prompt_messages(self.system, [(message["role"], message["content"]) for message in self.messages])

    def open(self, model: str, loading: dict[str, Any]) -> None:
        """Opens another model, or this one in another way; if that fails, the last one is opened again.

        The last one is closed first, because two may not fit. Raises any VkllmError.
        """
        ensure_here(model)
        self.llm.close()
        try:
            self.llm = open_model(model, loading)
        except (VkllmError, KeyboardInterrupt):
            self.llm = open_model(self.model, self.loading)
            raise
        self.model, self.loading = model, loading
        tell_of_memory(self.llm)
        print(f"{self.llm.path.stem} on {self.llm.device_name}, context of {self.llm.n_ctx} tokens.")

    def close(self) -> None:
        """Ends the engine."""
        self.llm.close()


def is_command(text: str) -> bool:
    """Whether a line is for the chat and not for the model; a path that begins with / is for the model."""
    return re.match(r"/[a-z?]+(\s|$)", text) is not None


def run_command(session: Session, text: str) -> bool:
    """Does what a line says; False if it says that the user leaves. Raises VkllmError, and then nothing has changed."""
    command, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    match command:
        case "/bye" | "/exit" | "/quit":
            return False
        case "/help" | "/?":
            print(_HELP_ON.get(rest.removeprefix("/"), _HELP))
        case "/clear":
            session.messages.clear()
            print("The conversation is forgotten.")
        case "/set":
            _set(session, rest)
        case "/show":
            _show(session, rest)
        case "/save":
            _save(session, rest)
        case "/load":
            _load(session, rest)
        case _:
            raise InvalidParameter(f"there is no command {command}; /? lists them")
    return True


# --- /set ------------------------------------------------------------------------------------------------------------


def _set(session: Session, rest: str) -> None:
    what, _, value = rest.partition(" ")
    value = value.strip()
    match what:
        case "parameter" if len(words := value.split()) > 1:
            _set_parameter(session, words[0], words[1:])
        case "system" if value:
            session.system = value
            print("The system message is set.")
        case "format" if value:
            session.sampling = _without_form(session.sampling) | {"json_schema": schema_of_format(value)}
            print("Answers are JSON now; say so to the model too.")
        case "noformat":
            session.sampling = _without_form(session.sampling)
            print("Answers are text of any form.")
        case "verbose" | "quiet":
            session.wants_stats = what == "verbose"
            print(f"Counts and speeds are {'shown' if session.wants_stats else 'not shown'} after answers.")
        case "history" | "nohistory":
            with contextlib.suppress(ImportError):
                import readline

                readline.set_auto_history(what == "history")
            print(f"What is typed is {'kept' if what == 'history' else 'not kept'} for the arrow keys.")
        case _:
            print(_HELP_ON["set"])


def _set_parameter(session: Session, name: str, words: list[str]) -> None:
    if field := _LOADING.get(name):
        if len(words) != 1 or not re.fullmatch(r"-?\d+", words[0]):
            raise InvalidParameter(f"{name} takes a number, not {' '.join(words)!r}")
        session.open(session.model, session.loading | {field: int(words[0])})
        return
    field, value = parameter(name, words)
    if value is None:
        session.sampling.pop(field, None)
    else:
        session.sampling[field] = value
    print(f"{name} is {_text_of(field, session.sampling)}.")


def _without_form(sampling: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sampling.items() if name not in FORMS}


# --- /show -----------------------------------------------------------------------------------------------------------


def _show(session: Session, what: str) -> None:
    shows: dict[str, Callable[[Session], str]] = {
        "info": _info,
        "parameters": _parameters,
        "system": lambda session: session.system or "There is no system message.",
        "template": lambda session: _template(session) or "The file has no chat template; ChatML is used.",
        "license": _licence,
        "licence": _licence,
        "modelfile": _modelfile,
    }
    print(shows[what](session) if what in shows else _HELP_ON["show"])


def _info(session: Session) -> str:
    facts = lines_of(fields_of_file(session.model, ModelFile.open(session.llm.path), _entry(session)))
    return "\n".join(f"{key:14}{text}" for key, text in facts)


def _parameters(session: Session) -> str:
    lines = {field: _text_of(field, session.sampling) for field in OPTIONS} | {"num_ctx": str(session.llm.n_ctx)}
    return "\n".join(f"{name:20}{text}" for name, text in lines.items())


def _licence(session: Session) -> str:
    metadata = ModelFile.open(session.llm.path).metadata
    entry = _entry(session)
    names = [metadata.string(f"general.license{end}", None) for end in ("", ".name", ".link")]
    return "\n".join(filter(None, names)) or (entry.licence if entry else "The file names no licence.")


def _modelfile(session: Session) -> str:
    lines = [f"FROM {session.llm.path}", f"PARAMETER num_ctx {session.llm.n_ctx}"]
    for field, value in session.sampling.items():
        if field in OPTIONS:
            lines += [f"PARAMETER {field} {part}" for part in (value if field == "stop" else [value])]
    for word, text in (("SYSTEM", session.system), ("TEMPLATE", _template(session))):
        if text:
            lines.append(f'{word} """{text}"""')
    return "\n".join(lines)


def _template(session: Session) -> str:
    return ModelFile.open(session.llm.path).metadata.string("tokenizer.chat_template", None) or ""


def _entry(session: Session) -> CatalogEntry | None:
    source = source_of(session.model)
    return source if isinstance(source, CatalogEntry) else None


def _text_of(field: str, sampling: dict[str, Any]) -> str:
    value = sampling.get(field, getattr(SamplingParams(), field))
    if field == "stop":
        return " ".join(map(repr, value)) or "none"
    unset = {"max_tokens": "as many as there is room for", "seed": "drawn anew for each answer"}
    return unset[field] if value is None else str(value)


# --- /save and /load -------------------------------------------------------------------------------------------------


def _save(session: Session, name: str) -> None:
    """Keeps the conversation under a name. Where there is one of that name already, both are kept as its versions."""
    if not name:
        raise InvalidParameter("give the conversation a name, as in /save NAME")
    if not session.messages:
        raise InvalidParameter("there is nothing to save yet; ask something first")
    with contextlib.closing(ChatStore(chats_path())) as store:
        chat = _chat_named(store, name) or store.new_chat(name, session.system, session.sampling)
        store.set_parameters(chat.id, session.system, session.sampling)
        kept = store.messages(chat.id)
        parent_id = None
        n_same = 0
        for message, old in zip(session.messages, kept, strict=False):
            if (message["role"], message["content"]) != (old.role, old.content):
                break
            parent_id, n_same = old.id, n_same + 1
        for message in session.messages[n_same:]:
            role: Role = "user" if message["role"] == "user" else "assistant"
            parent_id = store.add_message(chat.id, parent_id, role, message["content"]).id
    print(f"The conversation is kept as {name}; /load {name} goes on with it, and F2 of `vkllm chat` lists it.")


def _load(session: Session, name: str) -> None:
    """A kept conversation if there is one of that name, else a model."""
    if not name:
        raise InvalidParameter("name a kept conversation or a model, as in /load NAME")
    path = chats_path()
    if path.exists():
        with contextlib.closing(ChatStore(path)) as store:
            if chat := _chat_named(store, name):
                messages = [message for message in store.messages(chat.id) if message.content]
                session.messages = [{"role": message.role, "content": message.content} for message in messages]
                session.system, session.sampling = chat.system, dict(chat.sampling)
                print(f"{chat.title}: {len(messages)} messages" + (", the last one:" if messages else ""))
                print("\n".join(message.content for message in messages[-1:]))
                return
    try:
        session.open(name, session.loading)
    except ModelNotFound as error:
        raise ModelNotFound(f"no conversation is kept as {name!r}, and as a model: {error}") from None


def _chat_named(store: ChatStore, name: str) -> Chat | None:
    """The last changed chat of that name, whatever its case."""
    return next((chat for chat in store.chats() if chat.title.casefold() == name.casefold()), None)
