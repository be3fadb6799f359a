"""Steps of many rows in two halves, so that one is computed while the sums over ranks of the other travel.

A half is a step of its own to all kernels: with a step buffer of its own, and with the rows of the activations that are
its own. All rows are computed as in a step that is not cut. What may be cut, `model/shards/row_halves.py` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vkllm.gpu.device.kompute import Dispatch
from vkllm.gpu.program.exchange import ExchangeDispatch
from vkllm.gpu.program.operations import Operations
from vkllm.model.shards.row_halves import Piece

LEAST_LAG: Final = 2
"""Attention follows the rotation, which stores keys and values, as the next stage."""

BUSY: Final = frozenset(
    ("matmul", "matvec", "matmul_float", "expert_matmul", "expert_matvec", "attention", "attention_tiled")
)
"""Kernels that take long enough for a sum to travel meanwhile."""


@dataclass(frozen=True)
class Stage:
    """Dispatches that may run side by side: an ordered one and those behind it that are independent. is_whole: of all
    rows, so both halves wait for it and it for them."""

    dispatches: tuple[Dispatch, ...]
    is_whole: bool = False

    @property
    def is_sum(self) -> bool:
        """Whether it waits for other ranks."""
        return isinstance(self.dispatches[0], ExchangeDispatch)

    @property
    def is_busy(self) -> bool:
        """Whether a sum is to run beside it."""
        return not self.is_whole and any(dispatch.kernel.name in BUSY for dispatch in self.dispatches)


def stages_of(dispatches: Iterable[Dispatch], *, is_whole: bool = False) -> list[Stage]:
    """The stages of dispatches in their order."""
    found: list[list[Dispatch]] = []
    for dispatch in dispatches:
        if dispatch.is_independent and found:
            found[-1].append(dispatch)
        else:
            found.append([dispatch])
    return [Stage(tuple(stage), is_whole) for stage in found]


def interleaved(first: Sequence[Stage], second: Sequence[Stage]) -> Iterator[list[Stage]]:
    """Stages of two halves, whole ones in both, in groups that run one after the other; of a group, each of which is of
    another half, side by side.

    The first half is ahead of the second, since attention of the second reads what the first has cached, and by
    LEAST_LAG stages where neither waits for a sum, since its own must not read while the second caches. A sum runs
    beside what is busy in the other half, where there is anything. No two sums are in a group, and those of the halves
    take turns: so all ranks have them in the same order, whatever else each has to compute.
    """
    ahead = behind = 0
    n_ahead = 0  # sums that the first half is ahead
    while ahead < len(first) or behind < len(second):
        one = first[ahead] if ahead < len(first) else None
        other = second[behind] if behind < len(second) else None
        takes_one, takes_other = _taken(one, other, n_ahead, ahead - behind)
        group: list[Stage] = []
        if one is not None and takes_one:
            group.append(one)
            ahead, n_ahead = ahead + 1, n_ahead + one.is_sum
        if other is not None and takes_other:
            group.append(other)
            behind, n_ahead = behind + 1, n_ahead - other.is_sum
        yield group[:1] if group[0].is_whole else sorted(group, key=lambda stage: not stage.is_sum)


def _taken(one: Stage | None, other: Stage | None, n_ahead: int, lag: int) -> tuple[bool, bool]:
    """Whether the next group has the next stages of either half. n_ahead: sums, lag: stages that the first half is
    ahead."""
    if one is None or other is None:
        return one is not None, other is not None
    if one.is_whole or other.is_whole:  # it waits for both
        return not one.is_whole or other.is_whole, not other.is_whole or one.is_whole
    if one.is_sum and n_ahead:
        return False, True
    if one.is_sum:
        return other.is_busy or other.is_sum, not other.is_sum
    if other.is_sum:
        return True, one.is_busy
    return True, lag >= LEAST_LAG


class Halves:
    """Makes the dispatches of layers in two halves. pieces: the rank's operations. whole: those on all rows. of_half:
    those of a half, 0 or 1, of so many rows."""

    def __init__(self, pieces: Sequence[Piece], whole: Operations, of_half: Callable[[int, int], Operations]) -> None:
        self._pieces = pieces
        self._whole = whole
        self._of_half = of_half
        self._made: dict[tuple[int, int], Operations] = {}

    def layers(self, width: int) -> list[Dispatch]:
        """All layers of a step of `width` rows."""
        stages: tuple[list[Stage], list[Stage]] = ([], [])
        for piece in self._pieces:
            if not piece.is_cut:
                whole = stages_of(self._whole.of_all(piece.ops, width), is_whole=True)
                for of_half in stages:
                    of_half += whole
            ops = (*(piece.ops if piece.is_cut else ()), *((piece.total,) if piece.total else ()))
            for half, of_half in enumerate(stages):
                of_half += stages_of(self._operations(half, width // 2).of_all(ops, width // 2))
        return [dispatch for group in interleaved(*stages) for dispatch in _side_by_side(group)]

    def _operations(self, half: int, n_rows: int) -> Operations:
        key = (half, n_rows)
        if key not in self._made:
            self._made[key] = self._of_half(half, n_rows)
        return self._made[key]


def _side_by_side(group: Sequence[Stage]) -> list[Dispatch]:
    """The dispatches of a group, of which only the first waits for what was before."""
    dispatches = [dispatch for stage in group for dispatch in stage.dispatches]
    return [replace(dispatch, is_independent=i > 0) for i, dispatch in enumerate(dispatches)]
