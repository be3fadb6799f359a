"""The real engine, whose device fails when a test says so.

In the file that VKLLM_TEST_FAULT names stand when ("loading" or "answering"), the kind of call, which of them from then
on, and its VkResult; and, where only one of several devices is to fail, its rank. The file is gone once it was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from vkllm.engine.engine import Engine
from vkllm.engine.requests import EngineConfig, Request, StateQuery
from vkllm.gpu.layer import Layer

TIMEOUT_S, SEVERAL_TIMEOUT_S = 0.3, 3.0
"""Of every wait on one device, and on one of several, which share the processor where it is the device."""


class FaultyEngine(Engine):
    """Reads the file when it starts, if the fault is for "loading", and whenever a request comes."""

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None]) -> None:
        _arm("loading")
        super().__init__(config, on_progress)
        for device in self._opened.devices:
            device.timeout_s = TIMEOUT_S if len(self._opened.devices) == 1 else SEVERAL_TIMEOUT_S

    def submit(self, request: Request | StateQuery) -> None:
        _arm("answering", [device.layer_id for device in self._opened.devices])
        super().submit(request)


def _arm(when: str, layer_ids: Sequence[int] = ()) -> None:
    path = Path(os.environ["VKLLM_TEST_FAULT"])
    if path.exists() and (words := path.read_text().split())[0] == when:
        path.unlink()
        _, kind, nth, result, *rank = words
        on = [layer_ids[int(number)] for number in rank]
        Layer.activate().inject(kind, int(nth), int(result), *on)
