"""shift_hidden against numpy: rows behind each other in a step, and rows of earlier steps of several sequences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from kernel_case import filled, floats, poisoned, step_of

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, MAX_NARROW
from vkllm.gpu.program.step import Part

pytestmark = pytest.mark.gpu

COLUMNS, N_SEQUENCES = 70, 3


class Sequences:
    """Rows of several sequences, step by step. Zeros stand before the first row of each."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.kept = poisoned(device, N_SEQUENCES * MAX_NARROW * COLUMNS)
        self.rng = np.random.default_rng(0)

    def shifted(self, *parts: Part) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(hidden, shifted), both (T, COLUMNS), of a step of these parts."""
        n_rows = sum(len(part.tokens) for part in parts)
        hidden = self.rng.normal(0, 1, (n_rows, COLUMNS)).astype(np.float32)
        buffers = (
            filled(self.device, hidden),
            self.kept,
            poisoned(self.device, hidden.size),
            step_of(self.device, parts),
        )
        for keeps in (0, 1):
            made = self.device.dispatch(
                KERNELS["shift_hidden"], buffers, constants=(32, COLUMNS), groups=(2, n_rows + 1), push=(keeps,)
            )
            self.device.run([made])
        return hidden, floats(buffers[2], hidden.shape)


def part(sequence: int, n_rows: int, position: int, row_before: int | None) -> Part:
    return Part(sequence, [0] * n_rows, position, [], row_before=row_before)


def test_rows_follow_those_of_the_last_step_of_their_sequence(device: Device) -> None:
    sequences = Sequences(device)
    first, shifted = sequences.shifted(part(2, 3, 0, None), part(0, 2, 0, None))
    zeros = np.zeros(COLUMNS, np.float32)
    np.testing.assert_array_equal(shifted, [zeros, first[0], first[1], zeros, first[3]])
    # the last of its three rows was refused
    second, shifted = sequences.shifted(part(0, 1, 2, 1), part(2, 2, 2, 1))
    np.testing.assert_array_equal(shifted, [first[4], first[1], second[1]])


def test_of_a_wide_step_the_last_row_is_kept(device: Device) -> None:
    sequences = Sequences(device)
    n_rows = MAX_NARROW + 4
    first, shifted = sequences.shifted(part(1, n_rows, 0, None))
    np.testing.assert_array_equal(shifted[1:], first[:-1])
    _, shifted = sequences.shifted(part(1, 1, n_rows, 0))
    np.testing.assert_array_equal(shifted[0], first[-1])
