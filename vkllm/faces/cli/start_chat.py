"""Starts a chat: on the whole screen (vkllm.faces.tui) where there is one, else line by line."""

from __future__ import annotations

import os
import sys
from typing import Any

from vkllm.faces.cli.opening import RunOptions
from vkllm.faces.cli.remote import run_on_server
from vkllm.faces.cli.run import run_model
from vkllm.faces.remote import Server
from vkllm.faces.terminal import is_terminal
from vkllm.store import FoundModel


def has_screen() -> bool:
    """Whether a person sits at a terminal that can be drawn on."""
    return all(map(is_terminal, (sys.stdin, sys.stdout, sys.stderr))) and os.environ.get("TERM", "dumb") != "dumb"


def start_chat(
    model: FoundModel | str | None = None,
    *,
    sampling: dict[str, Any],
    loading: dict[str, Any] | None = None,
    system: str | None = None,
    is_plain: bool = False,
    server: Server | None = None,
) -> bool:
    """Chats until the user leaves; False if Ctrl-C cut an answer to piped input.

    Without a model, the last one or the user's choice on a screen, the default model elsewhere. sampling: fields of
    SamplingParams by name, checked (vkllm.faces.sampling). loading: arguments of LLM (vkllm.faces.cli.loading).
    server: where the model runs, if not here; its name is one of that server's then.
    """
    loading = dict(loading or {})
    if has_screen() and not is_plain:
        from vkllm.faces.tui.app import ChatOptions, run_chat

        n_ctx, device = loading.pop("n_ctx", None), loading.pop("device", None)
        run_chat(ChatOptions(model, system, n_ctx, device, sampling, server), loading)
        return True
    if server is not None:
        return run_on_server(server, RunOptions(model or "", system=system), sampling)
    return run_model(RunOptions(model or "smollm2", system=system, loading=loading), sampling)
