"""The codebooks of the IQ1, IQ2 and IQ3 formats: grids whose entries quants choose, and how the GPU gets them.

The gguf package has the numbers; they are read from it when they are first needed.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from vkllm.formats.bits import Floats, Words

_PLACES = (0, 4, 2, 6, 1, 5, 3, 7)
"""Of an entry with eight values of two bits, from the lowest bits on: which value lies there. So a shift by 12 and one
by 2 bring all of them to the beginning of bytes."""


@cache
def grid(name: str) -> Floats:
    """The entries of a format's grid: (entries, values of an entry)."""
    from gguf import quants  # takes 0.1 s, and few models need it

    kind = getattr(quants, name)
    kind.init_grid()
    found: Floats = np.array(kind.grid, np.float32)[0, 0]
    return found


@cache
def signs() -> Floats:
    """Eight signs for each seven bits, 1 or -1: (128, 8). An even number of them is negative."""
    seven = np.arange(128, dtype=np.uint8)[:, None] >> np.arange(7, dtype=np.uint8) & 1
    negative = np.concatenate([seven, seven.sum(axis=1, keepdims=True) % 2], axis=1)
    return np.where(negative == 1, np.float32(-1), np.float32(1))


@cache
def codebook(name: str) -> Words:
    """A format's grid as the plane of scales begins with it.

    Four values an entry: a word of four bytes. Eight values: which of their three levels, in two bits; two entries make
    a word.
    """
    entries = grid(name)
    if entries.shape[1] == 4:
        return np.ascontiguousarray(entries.astype(np.uint8)).view(np.uint32)[:, 0]
    levels: npt.NDArray[np.intp] = np.searchsorted(np.unique(entries), entries)
    codes = (levels[:, _PLACES] << np.arange(0, 16, 2)).sum(axis=1).astype(np.uint16)
    packed: Words = codes.view(np.uint32)
    return packed
