"""Bits of weight blocks: as numbers, and packed into the words of planes (`quants.py` says what a plane is).

Arrays of integers hold one value a byte: (n, blocks, 32) are the values of n units of some blocks of 32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

TWO, FOUR, EIGHT = (np.arange(0, 8, step, dtype=np.uint8)[:, None] for step in (4, 2, 1))
"""Where the parts of a byte begin that is cut into two, four or eight: (parts, 1)."""


def f16(raw: Bytes) -> Floats:
    """Bytes (n, 2 k) -> the float16 numbers in them, (n, k)."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def words(raw: Bytes) -> Words:
    """Bytes (n, ...) -> (n, words)."""
    return np.ascontiguousarray(raw).reshape(len(raw), -1).view(np.uint32)


def bits(raw: Bytes, first: int | Bytes, n_bits: int) -> Bytes:
    """n_bits bits of each byte, from the bit `first` on."""
    return raw >> np.asarray(first, np.uint8) & np.uint8((1 << n_bits) - 1)


def joined(low: Bytes, high: Bytes, n_low_bits: int) -> Bytes:
    """The bits of `high` above n_low_bits bits of `low`."""
    return low | high << np.uint8(n_low_bits)


def nibbles(raw: Bytes) -> Bytes:
    """Bytes (..., k) -> (..., 2 k): the low nibbles, then the high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def bits_of_words(raw: Bytes) -> Bytes:
    """Bytes (n, 4) -> (n, 32): bit i of the word is value i."""
    return np.unpackbits(np.ascontiguousarray(raw), axis=1, bitorder="little")


def nibble_words(integers: Bytes) -> Words:
    """(n, blocks, 32) -> (n, 4 blocks): byte j of a block holds the low four bits of values j and j + 16."""
    low = bits(integers, 0, 4)
    return words(joined(low[..., :16], low[..., 16:], 4))


def code_words(numbers: Bytes, codes: Bytes) -> Words:
    """Numbers of four bits (n, blocks, 32) -> (n, 4 blocks): word k of a block holds bit k of the code of each, as in
    bit_words."""
    planes = [bits(codes[numbers], k, 1) for k in range(4)]
    return bit_words(np.stack(planes, axis=2))


def pair_words(pairs: Bytes) -> Words:
    """Two bits each (n, blocks, 32) -> (n, 2 blocks): bits 8 j + 2 w of a half block's word are value 4 w + j."""
    spread = pairs.reshape(len(pairs), -1, 4, 4) << FOUR
    return words(spread.sum(axis=2, dtype=np.uint8))


def bit_words(single: Bytes) -> Words:
    """Bits (n, blocks, 32) -> (n, blocks): bit 8 j + w of a block's word is value 4 w + j."""
    spread = single.reshape(len(single), -1, 8, 4) << EIGHT
    return words(spread.sum(axis=2, dtype=np.uint8))
