"""Recordings of a program's dispatches, made once, and the steps that are submitted with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from vkllm.gpu.device.kompute import Device, Dispatch, Recording
from vkllm.gpu.program.exchange import placed
from vkllm.gpu.program.results import Place
from vkllm.gpu.program.rounds import check_rounds

MOST_KEPT = 256
"""Keys whose recordings are kept; the one unused for longest goes first. One of 200 dispatches is made in a
millisecond, and takes some 100 KiB."""


@dataclass(frozen=True)
class Submitted:
    """A step on its way. place: of its results. submitted_s: when, by time.perf_counter, after it was recorded. n_rows:
    of the step. is_new: whether something was recorded for it, which takes as long as a step of a small model."""

    ticket: int
    place: Place
    submitted_s: float
    n_rows: int = 0
    is_new: bool = False


@dataclass(frozen=True)
class Ready:
    """A step that is recorded and written, but not submitted. reading: what nobody waits for, behind the recordings."""

    recordings: Sequence[Recording]
    reading: Sequence[Recording]
    place: Place
    n_rows: int
    is_new: bool


class Recordings:
    """What is recorded, by keys. n_keys: cached tokens, at most. half_lines: of the memory for exchanges, if there is
    any (`placed`). n_made: how often something was recorded."""

    def __init__(self, device: Device, n_keys: int, half_lines: int = 0) -> None:
        self._device = device
        self._n_keys = n_keys
        self._half_lines = half_lines
        self.n_made = 0
        self._made: dict[Hashable, list[Recording]] = {}
        # what the last two choices recorded: choices that are tried in turn share the pipelines
        self._earlier: deque[dict[Hashable, list[Recording]]] = deque(maxlen=2)

    def of(
        self, key: Hashable, dispatches: Callable[[], list[Dispatch]], n_submits: int = 1, first_exchange: int = 1
    ) -> list[Recording]:
        """Dispatches in n_submits recordings, or more where exchanges need that, kept for a key. first_exchange:
        the number of the first in its step. Raises DeviceError."""
        if key in self._made:
            self._made[key] = self._made.pop(key)  # the last one
        else:
            self.n_made += 1
            made = dispatches()
            for dispatch in made:
                check_rounds(dispatch, self._device.info, self._n_keys)
            pieces = placed(made, self._half_lines, first_exchange)
            n = -(-n_submits // len(pieces))  # on all ranks the same
            self._made[key] = [
                self._device.record(piece[len(piece) * i // n : len(piece) * (i + 1) // n])
                for piece in pieces
                for i in range(n)
            ]
            if len(self._made) > MOST_KEPT:  # submits that still run are waited for
                del self._made[next(iter(self._made))]
        return self._made[key]

    def begin_again(self) -> None:
        """Forgets all, for other choices."""
        self._earlier.append(self._made)
        self._made = {}
