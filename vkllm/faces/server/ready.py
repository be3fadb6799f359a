"""Whether the server can answer, and what it says while it cannot."""

from __future__ import annotations

from typing import Any

from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.models import Models


def not_ready(state: Any) -> HttpError | None:
    """Why requests cannot be answered now, if that is so. state: of the application.

    A server of several models loads them on request, and is always ready for that.
    """
    models: Models = state.models
    if state.closing.is_set():
        return HttpError(503, "the server is ending", retry_after_s=2)
    model = models.only
    if model is None or model.was_loaded:  # a request wakes it up and waits
        return None
    if model.status == "failed":
        return HttpError(503, f"the model could not be loaded: {model.error}", retry_after_s=10)
    return HttpError(503, "Loading model", retry_after_s=1)
