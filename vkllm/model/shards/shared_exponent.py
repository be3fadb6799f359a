"""Eight numbers in 16 bytes, as ranks hand over rows of prompts: block floating point.

They share the exponent of the largest, and each has 15 bits, its sign included: an error of at most 2^-14 of the
largest, where bfloat16 has 2^-9 of each and float16 ends at 65,504. The reference for shaders/lib/shared_exponent.glsl.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]

EIGHT: Final = 8
"""Numbers that share an exponent."""

_LEAST_EXPONENT: Final = 14
"""So that no factor is denormal; smaller numbers are 0."""

_PLACES: Final = np.arange(4, dtype=np.uint32)


def packed(x: npt.NDArray[Any]) -> Words:
    """Numbers (..., 8 n), float32, as words (..., n, 4). Eight of which one is infinite or NaN become NaN."""
    eights = np.ascontiguousarray(x, np.float32).reshape(*x.shape[:-1], -1, EIGHT)
    largest = (eights.view(np.uint32) & 0x7FFFFFFF).max(axis=-1, keepdims=True)
    exponent = np.maximum(largest >> 23, _LEAST_EXPONENT).astype(np.uint32)
    scaled = np.where(exponent == 255, np.float32(0), eights) * ((267 - exponent) << 23).view(np.float32)
    numbers = np.minimum(np.rint(scaled), 16383).astype(np.int32).view(np.uint32)
    bits = exponent >> _PLACES
    halves = (numbers[..., :4] & 0x7FFF) << 1 | numbers[..., 4:] << 17
    return np.asarray(halves | bits & 1 | (bits >> 4 & 1) << 16, np.uint32)


def unpacked(words: Words) -> Floats:
    """The numbers (..., 8 n), float32, of words (..., n, 4)."""
    exponent = np.bitwise_or.reduce((words & 1 | words >> 12 & 16) << _PLACES, axis=-1, keepdims=True)
    factor = np.where(exponent == 255, np.uint32(0x7FC00000), (exponent - 13) << 23).astype(np.uint32).view(np.float32)
    numbers = np.concatenate([(words << 16).view(np.int32) >> 17, words.view(np.int32) >> 17], axis=-1)
    return np.asarray((numbers.astype(np.float32) * factor).reshape(*words.shape[:-2], -1), np.float32)


def rounded(x: npt.NDArray[Any]) -> Floats:
    """What is left of numbers (..., 8 n) that were packed."""
    return unpacked(packed(x))
