"""A model of a server that runs, with what a chat uses of `LLM`: it looks like a model that is open here.

It knows what servers tell of their models; answers are `remote.py`'s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

from vkllm.engine.params import SamplingParams
from vkllm.errors import InvalidParameter, ModelNotFound, VkllmError
from vkllm.faces.remote import RemoteAnswer, Server

_LOOK_S = 0.2
_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "penalty_window": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Field of SamplingParams -> its name in a server's default settings."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Listed:
    """A model as a server lists it. status: "loaded", "unloaded", "loading" and others; "" where it does not say."""

    name: str
    status: str = ""
    problem: str = ""
    n_ctx: int = 0
    n_bytes: int = 0


class RemoteModel:
    """A model of a server. n_ctx: 0 where the server does not say."""

    def __init__(self, server: Server, name: str, n_ctx: int, default_params: SamplingParams) -> None:
        self.server = server
        self.name = name
        self.n_ctx = n_ctx
        self.default_params = default_params

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True] = True, **sampling: Any
    ) -> RemoteAnswer:
        """Answers a conversation. sampling: fields of SamplingParams by name."""
        return RemoteAnswer(self.server, {**sampling, "model": self.name, "messages": list(messages)})

    def count_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """How many tokens a conversation has as a prompt; 0 where the server does not say."""
        body = {"model": self.name, "messages": list(messages)}
        try:
            return int(self.server.ask("/v1/chat/completions/input_tokens", body)["input_tokens"])
        except (VkllmError, KeyError, TypeError, ValueError):
            return 0

    def close(self) -> None:
        """Nothing is held here."""


def listed_models(server: Server) -> list[Listed]:
    """The models of a server. Raises VkllmError."""
    found = server.ask("/v1/models")
    data = found.get("data") if isinstance(found, dict) else None
    return [_listed(entry) for entry in data or () if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def open_remote(server: Server, name: str, on_progress: OnProgress) -> RemoteModel:
    """The model of a name, once the server has loaded it; "" is the only one, or the only one that is loaded.

    on_progress may raise, which ends the waiting. Raises ModelNotFound, VkllmError.
    """
    what = f"opening {name or 'a model'} on {server.name}"
    on_progress(what, 0, 0)
    model = _chosen(server, listed_models(server), name)
    if model.status in ("unloaded", "sleeping", "failed"):
        with contextlib.suppress(InvalidParameter):  # it is loaded meanwhile
            server.ask("/models/load", {"model": model.name})
        model = replace(model, status="loading")
    while model.status in ("unloaded", "loading"):
        on_progress(f"loading {model.name} on {server.name}", 0, 0)
        time.sleep(_LOOK_S)
        model = _chosen(server, listed_models(server), model.name)
    if model.status == "failed":
        raise VkllmError(f"{server.name} cannot load {model.name}: {model.problem or 'it does not say why'}")
    settings = told_of_model(server, model.name).get("default_generation_settings")
    settings = settings if isinstance(settings, dict) else {}
    n_ctx = settings.get("n_ctx")
    return RemoteModel(server, model.name, n_ctx if isinstance(n_ctx, int) else model.n_ctx, _defaults(settings))


def told_of_model(server: Server, name: str) -> dict[str, Any]:
    """What a server tells of a model, as llama.cpp's does; nothing where it is another kind of server."""
    try:
        told = server.ask(f"/props?model={quote(name, safe='')}")
    except VkllmError:
        return {}
    return told if isinstance(told, dict) else {}


def _listed(entry: dict[str, Any]) -> Listed:
    status, meta = entry.get("status"), entry.get("meta")
    status = status if isinstance(status, dict) else {}
    meta = meta if isinstance(meta, dict) else {}
    n_ctx, n_bytes = (value if isinstance(value, int) else 0 for value in (meta.get("n_ctx"), meta.get("size")))
    value = "failed" if status.get("failed") else str(status.get("value") or "")
    return Listed(entry["id"], value, str(status.get("error") or ""), n_ctx, n_bytes)


def _chosen(server: Server, models: Sequence[Listed], name: str) -> Listed:
    if name:
        # A server of one model answers with it, whatever it is called.
        named = [model for model in models if model.name == name]
        if named or len(models) == 1:
            return (named or list(models))[0]
    else:
        loaded = [model for model in models if model.status == "loaded"]
        for few in (models, loaded):
            if len(few) == 1:
                return few[0]
    names = ", ".join(model.name for model in models[:5]) + (" and more" if len(models) > 5 else "")
    problem = f"has no model {name!r}" if name else "has several models; choose one" if models else "has no model"
    raise ModelNotFound(f"{server.name} {problem}" + (f"; there are {names}" if models else ""))


def _defaults(settings: Mapping[str, Any]) -> SamplingParams:
    given = settings.get("params")
    given = given if isinstance(given, dict) else settings
    try:
        return SamplingParams(**{field: given[name] for field, name in _SAMPLING.items() if name in given})
    except InvalidParameter:  # values that vkllm does not know
        return SamplingParams()
