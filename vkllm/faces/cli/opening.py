"""A model opened for a command: what was asked for, a progress bar while it loads, what makes it slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vkllm import LLM
from vkllm.faces.cli.loading import tell_of_memory
from vkllm.faces.cli.models import ensure_here
from vkllm.faces.slow_device import why_slow
from vkllm.faces.terminal import complain, loading_bar
from vkllm.faces.thoughts import Thoughts
from vkllm.store import FoundModel


@dataclass(frozen=True)
class RunOptions:
    """What was asked for on the command line, besides sampling. loading: arguments of LLM (vkllm.faces.cli.loading)."""

    model: str | FoundModel
    prompt: str | None = None
    files: Sequence[Path] = ()
    system: str | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    wants_stats: bool = False
    is_raw: bool = False
    thoughts: Thoughts = "on a terminal"


def open_model(model: str | FoundModel, loading: dict[str, Any]) -> LLM:
    """Loads a model with a progress bar, after asking whether to fetch one that is not here. Raises any VkllmError."""
    found = ensure_here(model)
    with loading_bar() as on_progress:
        return LLM(found, **loading, on_progress=on_progress)


def tell_of_device(llm: LLM) -> None:
    """Says on standard error what makes this model slow on this device, if anything does."""
    tell_of_memory(llm)
    for reason in why_slow(llm):
        complain("warning", reason)
