"""How rows, columns and heads are divided among ranks, in given proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Ranges = tuple[range, ...]

SIZES = (256, 128, 64, 32, 16, 8)
"""Pieces that columns are divided in. Kernels are fastest with columns in multiples of 256; the smallest are for small
models."""

MOST_UNEVEN = 1 + 1 / 16
"""How much more than its proportion a rank may get, for larger pieces."""


@dataclass(frozen=True)
class Hidden:
    """Hidden columns of a rank: those that it has of its own, and all of the blocks that they lie in. What the rank
    computes of the others is zero."""

    own: range
    blocks: range

    def rows(self, first: int = 0) -> Ranges:
        """The rows that make them, of a matrix whose rows begin at `first`."""
        before, behind = self.own.start - self.blocks.start, self.blocks.stop - self.own.stop
        return (*_zeros(before), moved(self.own, first), *_zeros(behind))


def _zeros(n: int) -> Ranges:
    """n rows that no file has."""
    return (range(-1 - n, -1),) if n else ()


def moved(part: range, by: int) -> range:
    """The range, further on."""
    return range(part.start + by, part.stop + by)


def shares(n: int, proportions: Sequence[float], turn: int = 0) -> list[range] | None:
    """n pieces, each rank at least one; None where there are too few.

    What is left of whole pieces goes to the largest remainders, of equal ones to the first from rank `turn` on: layers
    take turns, so that all ranks have about as much in the end.
    """
    n_ranks, total = len(proportions), sum(proportions)
    exact = [n * proportion / total for proportion in proportions]
    counts = [max(math.floor(part), 1) for part in exact]
    while sum(counts) < n:
        # remainders of equal proportions may differ in their last bits
        counts[max(range(n_ranks), key=lambda i: (round(exact[i] - counts[i], 9), -((i - turn) % n_ranks)))] += 1
    while sum(counts) > n and max(counts) > 1:
        counts[max((i for i, count in enumerate(counts) if count > 1), key=lambda i: counts[i] - exact[i])] -= 1
    if sum(counts) > n:
        return None
    ends = [sum(counts[:i]) for i in range(len(counts) + 1)]
    return [range(*ends[i : i + 2]) for i in range(len(counts))]


def divided_hidden(n: int, border: int, proportions: Sequence[float], turn: int) -> list[Hidden] | None:
    """n hidden columns, divided where the matrix behind them can be cut, at multiples of `border`.

    Where there are fewer blocks than ranks, some have rows of the same block. None where this would save nothing.
    """
    parts, n_ranks, n_blocks = divided(n, border, proportions, turn=turn), len(proportions), n // border
    if parts is not None:
        return [Hidden(part, part) for part in parts]
    if n_blocks < 2 or n % border:
        return None
    found: list[Hidden] = []
    for block in range(n_blocks):
        columns = range(block * border, (block + 1) * border)
        n_sharing = -(-(block + 1) * n_ranks // n_blocks) - -(-block * n_ranks // n_blocks)
        ends = [columns.start + i * border // n_sharing for i in range(n_sharing + 1)]
        found += [Hidden(range(*ends[i : i + 2]), columns) for i in range(n_sharing)]
    return found


def divided(
    n: int, border: int, proportions: Sequence[float], sizes: Sequence[int] = SIZES, turn: int = 0
) -> list[range] | None:
    """n columns (or rows), divided at multiples of `border`, in the largest pieces that are as even as MOST_UNEVEN.

    None where they cannot be divided.
    """
    found = None
    for size in (size for size in sizes if size % border == 0):
        parts = shares(-(-n // size), proportions, turn)
        if parts is None:
            continue
        ranges = [range(part.start * size, min(part.stop * size, n)) for part in parts]
        found = ranges
        if is_even([len(part) for part in ranges], proportions):
            break
    return found


def divided_pieces(n: int, size: int, border: int, proportions: Sequence[float], turn: int = 0) -> list[range] | None:
    """n pieces of `size` columns each, divided where their columns are at multiples of `border`; None where they cannot
    be divided."""
    n_together = border // math.gcd(border, size)
    parts = shares(-(-n // n_together), proportions, turn)
    return parts and [range(part.start * n_together, min(part.stop * n_together, n)) for part in parts]


def is_even(counts: Sequence[int], proportions: Sequence[float]) -> bool:
    """Whether no rank has much more than its proportion."""
    n, total = sum(counts), sum(proportions)
    return all(count * total <= MOST_UNEVEN * n * part for count, part in zip(counts, proportions, strict=True))


def times(ranges: Sequence[range], size: int, first: int = 0) -> Ranges:
    """Pieces of `size` numbers each, by their places behind `first`."""
    return tuple(range(first + part.start * size, first + part.stop * size) for part in ranges)


def length(ranges: Sequence[range]) -> int:
    """How many numbers these are."""
    return sum(map(len, ranges))
