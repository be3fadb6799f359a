"""What passes through the pipe between a caller's process and its engine, besides requests and their events.

To the engine: `Load` first, then `TokenTexts`, `Request`, a `Query`, `Cancel` and, last, `Stop`. From it:
`LoadProgress` until `Ready`, then lists of events; `EngineFailed` at any time, as its last word. All of them are
pickled, so each side has to trust the other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import TYPE_CHECKING

from vkllm.engine.requests import EngineConfig
from vkllm.errors import VkllmError
from vkllm.model.memory.plan import MemoryPlan

if TYPE_CHECKING:
    if sys.platform == "win32":
        Connection = connection.PipeConnection
    else:
        Connection = connection.Connection


@dataclass(frozen=True)
class Load:
    """Load a model. asked_s: when that was wanted, by time.perf_counter, which all processes of a machine share."""

    config: EngineConfig
    asked_s: float


@dataclass(frozen=True)
class Cancel:
    """Stop working on a request; unknown and finished ones are ignored."""

    request_id: int


@dataclass(frozen=True)
class Stop:
    """End the engine's process."""


@dataclass(frozen=True)
class LoadProgress:
    """How far loading is, in bytes."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Ready:
    """The model is loaded. moved_bytes: bytes that the driver refused to allocate where the plan had placed them.

    slow_paths: what the device computes wrongly, so that slower kernels do it. load_s: seconds of loading, by what took
    them (`LoadTimes`).
    """

    device_name: str
    is_cpu_device: bool
    plan: MemoryPlan
    moved_bytes: int
    slow_paths: tuple[str, ...] = ()
    load_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineFailed:
    """The engine could not start, or cannot go on."""

    error: VkllmError


def open_connection(handle: int) -> Connection:
    """The end of a pipe that this process inherited under the number `handle`."""
    if sys.platform == "win32":
        return connection.PipeConnection(handle)
    return connection.Connection(handle)
