"""How parts of a model fill the memories of a device: one after the other, the fastest memory first.

A later part never lies in a faster tier than an earlier one. So more memory only moves parts to faster tiers, and
cannot make a plan slower or impossible. Knows matrices, rows and tiers; which parts there are and what they are worth
is in `needs.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vkllm.errors import OutOfDeviceMemory
from vkllm.model.memory.limits import Tier
from vkllm.model.memory.needs import Stack

STEP_ROWS = 128
"""Matrices are cut at multiples of it: whole tiles of `matmul`, whole units of every format in both planes, and planes
of whole `ALIGNMENT`s, so that the parts take no more than the whole, but for their codebooks of at
most 4 KiB."""


class DoesNotFit(Exception):
    """No tier has room for a part."""


@dataclass(frozen=True)
class MatrixRows:
    """Rows first_row to first_row + n_rows of a stack: a pair of planes in one tier."""

    stack: Stack
    first_row: int
    n_rows: int
    tier: Tier

    @property
    def n_bytes(self) -> int:
        """Device memory of the planes."""
        return self.stack.n_bytes(self.n_rows)


class Tiers:
    """Room that is left, tier by tier. capacities: bytes that a plan may use of each tier, the fastest first."""

    def __init__(self, capacities: Sequence[tuple[Tier, int]], max_buffer_bytes: int) -> None:
        self._left = list(capacities)
        self._max_buffer_bytes = max_buffer_bytes

    @property
    def tier(self) -> Tier:
        """The fastest tier that is not full yet. Raises DoesNotFit if there is none."""
        if not self._left:
            raise DoesNotFit
        return self._left[0][0]

    def leave(self, tier: Tier) -> None:
        """Places nothing more in that tier, if it is the fastest."""
        if self._left and self._left[0][0] is tier:
            del self._left[0]

    def place(self, n_bytes: int) -> Tier:
        """Takes room for what cannot be divided. Raises DoesNotFit."""
        while n_bytes > self._room():
            self.leave(self.tier)
        self._take(n_bytes)
        return self.tier

    def place_rows(self, stack: Stack) -> list[MatrixRows]:
        """Takes room for a matrix, cut where a tier ends and where a plane would be too large to bind.

        Raises DoesNotFit; OutOfDeviceMemory if even the smallest possible part is too large to bind.
        """
        if stack.is_whole:
            return [self._place_whole(part) for part in self._bindable(stack)]
        most = self._max_rows(stack)
        rows: list[MatrixRows] = []
        first_row = 0
        while first_row < stack.n_rows:
            end = first_row + self._rows_that_fit(stack, stack.n_rows - first_row)
            if end == first_row:
                self.leave(self.tier)
                continue
            self._take(stack.n_bytes(end - first_row))
            starts = range(first_row, end, most)
            rows += [MatrixRows(stack, start, min(most, end - start), self.tier) for start in starts]
            first_row = end
        return rows

    def _bindable(self, stack: Stack) -> list[Stack]:
        """The stack, or its tensors, if together they are too large to bind."""
        largest = max(stack.plane_bytes(stack.n_rows))
        if largest <= self._max_buffer_bytes:
            return [stack]
        n_rows, n_tensors = stack.n_rows // len(stack.tensors), len(stack.tensors)
        if n_tensors > 1:
            singles = [replace(stack, tensors=(name,), n_rows=n_rows) for name in stack.tensors]
            return [part for single in singles for part in self._bindable(single)]
        raise OutOfDeviceMemory(
            f"the experts of {stack.tensors[0]} take {largest:,} bytes, more than this device can bind at once "
            f"({self._max_buffer_bytes:,} bytes); use a smaller quantization"
        )

    def _place_whole(self, stack: Stack) -> MatrixRows:
        return MatrixRows(stack, 0, stack.n_rows, self.place(stack.n_bytes(stack.n_rows)))

    def _room(self) -> int:
        return self._left[0][1] if self._left else 0

    def _take(self, n_bytes: int) -> None:
        tier, room = self._left[0]
        self._left[0] = (tier, room - n_bytes)

    def _rows_that_fit(self, stack: Stack, n_rows: int) -> int:
        if stack.n_bytes(n_rows) <= self._room():
            return n_rows
        return self._room() // stack.n_bytes(STEP_ROWS) * STEP_ROWS

    def _max_rows(self, stack: Stack) -> int:
        """Rows of the largest part whose planes can be bound."""
        if max(stack.plane_bytes(stack.n_rows)) <= self._max_buffer_bytes:
            return stack.n_rows
        step_bytes = max(stack.plane_bytes(STEP_ROWS))
        if step_bytes > self._max_buffer_bytes:
            raise OutOfDeviceMemory(
                f"{STEP_ROWS} rows of tensor {stack.tensors[0]} take {step_bytes:,} bytes, more than this device can "
                f"bind at once ({self._max_buffer_bytes:,} bytes); use a smaller quantization"
            )
        return self._max_buffer_bytes // step_bytes * STEP_ROWS
