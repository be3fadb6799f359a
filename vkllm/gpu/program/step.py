"""The step buffer: what changes from one submit to the next, in the layout of shaders/lib/step.glsl.

A few slots lie in host memory, one for each submit in flight; the kernel `begin_step` copies a slot to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.kernels import MAX_ROWS

HEADER_WORDS = 8

KEEP_ALL = 0xFFFFFFFF
"""The `top_p` of a draw that keeps all candidates."""


@dataclass(frozen=True)
class Row:
    """One token of a step. token_id: None takes the token that the step before chose on the GPU. state_slot: where the
    states of layers behind this token are stored, if anywhere; in the step of a prompt, only behind the last row and
    behind multiples of STATE_ROWS."""

    token_id: int | None
    position: int
    state_slot: int | None = None


@dataclass(frozen=True)
class Draw:
    """How a step draws its token, in the numbers that `pick` in engine/sampler.py explains.

    top_k: candidates. top_p: share of the weights that is kept, in units of 2^-32. min_p: least weight. slope: the
    temperature, as a float32. number: 32 random bits, the step's own.
    """

    top_k: int
    top_p: int
    min_p: int
    slope: float
    number: int


class StepSlots:
    """n_slots steps in host memory. n_table: most cache blocks that a step can name."""

    def __init__(self, device: Device, n_slots: int, n_table: int) -> None:
        self.slot_words = HEADER_WORDS + 4 * MAX_ROWS + n_table
        self.buffer: Buffer = device.buffer(n_slots * self.slot_words, is_host=True)
        self.on_device: Buffer = device.buffer(self.slot_words)

    def write(
        self,
        slot: int,
        rows: Sequence[Row],
        block_table: Sequence[int],
        draw: Draw | None = None,
        state_slot: int | None = None,
    ) -> None:
        """Fills a slot with up to MAX_ROWS rows of one sequence, whose cache blocks block_table lists.

        state_slot: where the states of layers before the first row lie; None: they are zeros."""
        assert 0 < len(rows) <= MAX_ROWS and self.buffer.words is not None
        words = self.buffer.words[slot * self.slot_words : (slot + 1) * self.slot_words]
        words[:2] = (len(rows), len(block_table))
        if draw is not None:
            words[2:7] = (draw.top_k, draw.top_p, draw.min_p, np.float32(draw.slope).view(np.uint32), draw.number)
        words[7] = 0 if state_slot is None else state_slot + 1
        table = HEADER_WORDS + 4 * MAX_ROWS
        words[HEADER_WORDS : HEADER_WORDS + 4 * len(rows)] = np.array(
            [(row.token_id or 0, row.position, 0, _last_word(row)) for row in rows], np.uint32
        ).reshape(-1)
        words[table : table + len(block_table)] = block_table


def _last_word(row: Row) -> int:
    """The slot of a row's states plus 1, or 0; begin_step takes off the highest bit: take the token chosen last."""
    slot = 0 if row.state_slot is None else row.state_slot + 1
    return slot | (row.token_id is None) << 31
