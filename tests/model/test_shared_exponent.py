"""Eight numbers that share an exponent, as ranks hand them over in steps of many rows: bits, range, error."""

from __future__ import annotations

import numpy as np
import pytest

from vkllm.model.shards.shared_exponent import packed, rounded, unpacked


def nmse(found: np.ndarray, wanted: np.ndarray) -> float:
    difference = found.astype(np.float64) - wanted
    return float((difference**2).sum() / (wanted.astype(np.float64) ** 2).sum())


def as_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)


def test_the_bits_are_those_that_the_shader_writes() -> None:
    """1.5 has exponent 127, 0b01111111, and is 1.5 * 2^13 steps."""
    words = packed(np.array([1.5, -1.5, 0, 2**-13, 1, -1, 0.75, 2**-14], np.float32))
    halves = words.view(np.uint16)[0]
    assert (halves & 1).tolist() == [1, 1, 1, 1, 1, 1, 1, 0], "bit k of the exponent is in word k % 4, half k // 4"
    numbers = (halves.view(np.int16) >> 1).tolist()
    assert numbers == [12288, 8192, -12288, -8192, 0, 6144, 1, 0], "half a step is rounded to the even one"
    assert unpacked(words).tolist() == [1.5, -1.5, 0, 2**-13, 1, -1, 0.75, 0]


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 65_504.0, 1e30, 1.7e38])
def test_no_error_is_more_than_2_to_the_minus_14_of_the_largest(scale: float) -> None:
    rng = np.random.default_rng(1)
    x = (rng.uniform(-2, 2, (40, 4096)) * scale).astype(np.float32)
    x[0, :8] = np.nextafter(np.float32(2 * scale), np.float32(0))  # the next number up would need another bit
    largest = np.abs(x).reshape(40, -1, 8).max(-1).repeat(8, -1)
    found = rounded(x)
    assert np.isfinite(found).all() and (np.abs(found.astype(np.float64) - x) <= 2.0**-14 * largest).all()


@pytest.mark.parametrize("is_heavy", [False, True])
def test_the_error_is_far_below_those_of_16_bit_floats(is_heavy: bool) -> None:
    """Of sums such as products make, and of those with many outliers."""
    rng = np.random.default_rng(2)
    drawn = rng.standard_t(3, (64, 4096)) if is_heavy else rng.normal(size=(64, 4096))
    x = drawn.astype(np.float32)
    assert nmse(rounded(x), x) < 5e-9
    assert nmse(x.astype(np.float16).astype(np.float32), x) > 3e-8
    assert nmse(as_bfloat16(x), x) > 2e-6


def test_what_is_not_finite_is_not_hidden_and_what_is_tiny_is_nothing() -> None:
    x = np.ones((3, 8), np.float32)
    x[0, 3], x[1, 5] = np.nan, -np.inf
    found = rounded(x)
    assert np.isnan(found[:2]).all() and (found[2] == 1).all()
    assert (rounded(np.full(8, 1e-39, np.float32)) == 0).all() and (rounded(np.zeros(8, np.float32)) == 0).all()
