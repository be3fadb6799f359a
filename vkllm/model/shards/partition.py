"""How rows, columns and heads are divided among ranks, in given proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence

Ranges = tuple[range, ...]

SIZES = (256, 128, 64, 32, 16, 8)
"""Pieces that columns are divided in. Kernels are fastest with columns in multiples of 256; the smallest are for small
models."""

MOST_UNEVEN = 1 + 1 / 16
"""How much more than its proportion a rank may get, for larger pieces."""


def shares(n: int, proportions: Sequence[float]) -> list[range] | None:
    """n pieces, each rank at least one; None where there are too few.

    What is left of whole pieces goes to the largest remainders, the first of equal ones.
    """
    total = sum(proportions)
    exact = [n * proportion / total for proportion in proportions]
    counts = [max(math.floor(part), 1) for part in exact]
    while sum(counts) < n:
        counts[max(range(len(counts)), key=lambda i: exact[i] - counts[i])] += 1
    while sum(counts) > n and max(counts) > 1:
        counts[max((i for i, count in enumerate(counts) if count > 1), key=lambda i: counts[i] - exact[i])] -= 1
    if sum(counts) > n:
        return None
    ends = [sum(counts[:i]) for i in range(len(counts) + 1)]
    return [range(*ends[i : i + 2]) for i in range(len(counts))]


def divided(n: int, border: int, proportions: Sequence[float], sizes: Sequence[int] = SIZES) -> list[range] | None:
    """n columns (or rows), divided at multiples of `border`, in the largest pieces that are as even as MOST_UNEVEN.

    None where they cannot be divided.
    """
    found = None
    for size in (size for size in sizes if size % border == 0):
        parts = shares(-(-n // size), proportions)
        if parts is None:
            continue
        ranges = [range(part.start * size, min(part.stop * size, n)) for part in parts]
        found = ranges
        if is_even([len(part) for part in ranges], proportions):
            break
    return found


def divided_pieces(n: int, size: int, border: int, proportions: Sequence[float]) -> list[range] | None:
    """n pieces of `size` columns each, divided where their columns are at multiples of `border`; None where they cannot
    be divided."""
    n_together = border // math.gcd(border, size)
    parts = shares(-(-n // n_together), proportions)
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
