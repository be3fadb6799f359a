"""The real engine, whose device fails when a test says so.

In the file that VKLLM_TEST_FAULT names stand when ("loading" or "answering"), the kind of call, which of them from then
on, and its VkResult. The file is gone once it was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vkllm.engine.engine import Engine
from vkllm.engine.requests import EngineConfig, Request, StateQuery
from vkllm.gpu.layer import Layer

TIMEOUT_S = 0.3


class FaultyEngine(Engine):
    """Reads the file when it starts, if the fault is for "loading", and whenever a request comes."""

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None]) -> None:
        _arm("loading")
        super().__init__(config, on_progress)
        self._device.timeout_s = TIMEOUT_S

    def submit(self, request: Request | StateQuery) -> None:
        _arm("answering")
        super().submit(request)


def _arm(when: str) -> None:
    path = Path(os.environ["VKLLM_TEST_FAULT"])
    if path.exists() and (words := path.read_text().split())[0] == when:
        path.unlink()
        _, kind, nth, result = words
        Layer.activate().inject(kind, int(nth), int(result))
