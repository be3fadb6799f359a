"""Finds out what is wrong with a model before the one that is open is closed for it."""

from __future__ import annotations

from collections.abc import Callable

from vkllm.api.loading import read_text
from vkllm.api.planning import ModelToPlan
from vkllm.formats.gguf import ModelFile
from vkllm.store import find_model

OnProgress = Callable[[str, int, int], None]


def check_model(model: str, n_ctx: int | None, on_progress: OnProgress) -> None:
    """Fetches a model if it is not here, and reads all of it but its weights; touches no device.

    n_ctx: tokens of context to load it with, None for its own choice. Raises any VkllmError that loading it would
    raise before it looks at a device.
    """
    path = find_model(model, on_progress=on_progress)
    on_progress(f"checking {path.name}", 0, 0)
    found = ModelToPlan.open(path, n_ctx)
    read_text(path, ModelFile.open(path).metadata, found.spec)
