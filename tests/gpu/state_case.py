"""What tests of kernels with states share: slots of a state, and steps that read and store them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from kernel_case import poisoned

from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.state_operations import lanes_of_state
from vkllm.gpu.program.step import Part, StepSlots

Floats = npt.NDArray[np.float32]

FIRST_WORD = 8  # of a layer's state in a slot
N_SLOTS = 3


def step(device: Device, n_rows: int, read: int | None, stored: dict[int, int]) -> Buffer:
    """A step that reads its states from a slot and stores them behind some of its rows, by row."""
    slots = StepSlots(device, 1, 1)
    slots.write(0, [Part(0, [0] * n_rows, 0, [], state_slot=read, stored=stored)])
    return slots.buffer


class Slots:
    """The slots of one state. The last number of each slot is another layer's, which nobody may write."""

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        self.slot_words = -(-(FIRST_WORD + size + 4) // 4) * 4
        self.buffer = poisoned(device, N_SLOTS * self.slot_words)

    def __getitem__(self, slot: int) -> Floats:
        return self._words[slot, FIRST_WORD : FIRST_WORD + self.size].view(np.float32).copy()

    def __setitem__(self, slot: int, state: Floats) -> None:
        self._words[slot, FIRST_WORD : FIRST_WORD + self.size] = state.reshape(-1).view(np.uint32)

    @property
    def _words(self) -> npt.NDArray[np.uint32]:
        assert self.buffer.words is not None
        return self.buffer.words.reshape(N_SLOTS, -1)

    def is_clean_outside(self) -> bool:
        outside = np.delete(self._words, slice(FIRST_WORD, FIRST_WORD + self.size), axis=1)
        return bool((outside == 0x7FC00000).all())


def rows_of(array: Floats, first: int, end: int, n_recorded: int) -> Floats:
    """Rows of a step, and behind them what an earlier step may have left there."""
    return np.concatenate([array[first:end], np.full((n_recorded - (end - first), array.shape[1]), np.nan, np.float32)])


def team_constants(device: Device, n_columns: int, size: int) -> tuple[dict[str, int], int]:
    """local_size and lanes of delta_net and mamba2, and their workgroups along x."""
    lanes = lanes_of_state(size, 1 if device.is_plain else device.info.subgroup_size)
    return dict(local_size=64, lanes=lanes), -(-n_columns * lanes // 64)
