"""Loads in threads: what they leave behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from vkllm.faces.tui.jobs import LoadJob


class Cyclic:
    """A model that only the garbage collector can free."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.itself = self

    def close(self) -> None:
        pass


def load() -> Any:
    job = LoadJob(Cyclic, "a model", n_ctx=None, device=None, previous=None)  # type: ignore[arg-type]
    job.join(120)
    assert job.error is None and job.llm is not None
    return job.llm


def test_what_a_model_brings_is_not_looked_through_again_and_yet_goes_with_it() -> None:
    first = weakref.ref(load())
    assert gc.get_freeze_count() > 10_000
    gc.collect()
    assert first() is not None  # it rests
    second = weakref.ref(load())
    assert first() is None
    gc.unfreeze()
    gc.collect()
    assert second() is None
