"""Which ways on there are from an error. Every error that reaches the user is a card with at least one."""

from __future__ import annotations

from vkllm import ContextOverflow, InvalidParameter, OutOfDeviceMemory, VkllmError
from vkllm.errors import counted
from vkllm.faces.remote_model import RemoteModel
from vkllm.faces.tui.jobs import OpenedModel
from vkllm.faces.tui.message_view import Notice, WayOn
from vkllm.faces.tui.session import MIN_N_CTX, Session, model_title

_RETRY = WayOn("Try again (^R)", "regenerate")
_MODEL = WayOn("Other model (F3)", "models")
_NEW = WayOn("New chat (^N)", "new_chat")
_PARAMETERS = WayOn("Parameters (F4)", "parameters")


def notice_for(error: VkllmError, session: Session, kept: OpenedModel | None = None) -> Notice:
    """The card for an error of the engine, or of opening a model. kept: the model that is open in its place."""
    if kept is not None:
        context = counted(kept.llm.n_ctx, "token")
        text = f"{sentence(str(error))} {model_title(kept.llm)} stays open, with {context} of context."
        return Notice(text, [_MODEL, _PARAMETERS])
    match error:
        case ContextOverflow():
            ways = [*_larger_context(session), _NEW, _RETRY]
        case OutOfDeviceMemory():
            ways = [*_shorter_context(session), _MODEL, _RETRY]
        case InvalidParameter():
            ways = [_PARAMETERS, _RETRY, _MODEL]
        case _:
            ways = [_RETRY, _MODEL]
    return Notice(sentence(str(error)), ways)


def context_is_full(session: Session) -> Notice:
    """The card for an answer that ended because there was no room for more."""
    return Notice(
        f"The context of {counted(session.llm.n_ctx if session.llm else 0, 'token')} is full, so the answer ends here.",
        [*_larger_context(session), _NEW],
    )


def _larger_context(session: Session) -> list[WayOn]:
    if session.llm is None or isinstance(session.llm, RemoteModel):
        return []
    if session.llm.n_ctx >= session.llm.spec.n_ctx_train:
        return []
    n_ctx = min(2 * session.llm.n_ctx, session.llm.spec.n_ctx_train)
    return [WayOn(f"Load with {counted(n_ctx, 'token')}", f"load_with_context({n_ctx})")]


def _shorter_context(session: Session) -> list[WayOn]:
    n_ctx = (session.llm.n_ctx if session.llm else session.n_ctx or 4096) // 2
    return [WayOn(f"Load with {counted(n_ctx, 'token')}", f"load_with_context({n_ctx})")] if n_ctx >= MIN_N_CTX else []


def sentence(text: str) -> str:
    """The same with a full stop and, unless it begins with a name, a capital letter."""
    text = " ".join(text.split())
    is_word = text.split(" ", 1)[0] in ("a", "all", "an", "it", "no", "the", "there", "this")
    return (text[:1].upper() + text[1:] if is_word else text) + ("" if text.endswith((".", "!", "?")) else ".")
