"""The formats that choose from a grid, and the ternary ones: super-blocks of 256 values to numbers and to planes.

    IQ2_XXS, IQ2_XS, IQ2_S  value = d / 4 * (scale + 1/2) * sign * grid; scale 4 bits, one a block or for 16 values
    IQ3_XXS                 value = d / 2 * (scale + 1/2) * sign * grid; scale 4 bits, one a block
    IQ3_S                   value = d * (2 scale + 1) * sign * grid; scale 4 bits, one a block
    IQ1_S, IQ1_M            value = d * (2 scale + 1) * (grid +- 1/8); scale 3 bits, one a block or for 16 values
    TQ1_0, TQ2_0            value = d * (q - 1); q a digit to base 3, or two bits

A place in a grid stands for four values (IQ3) or eight (`codebooks.py`). In planes the bits stay as they are in the
file, ordered so that a block's lie together; shaders/formats says of each what its words hold. The plane of scales
begins with the codebook, and d becomes a float32, divided by 4, 2 or 8 as above.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vkllm.formats.bits import FOUR, TWO, Bytes, Floats, Words, bits, f16, pair_words, words
from vkllm.formats.codebooks import grid, signs

Split = Callable[[Bytes], tuple[Words, Words]]


def iq2_xxs(raw: Bytes) -> Floats:
    """Dequantizes (n, 66) -> (n, 256)."""
    both = words(raw[:, 2:]).reshape(-1, 8, 2)
    scale = _d(raw) * (np.float32(0.5) + (both[..., 1] >> 28).astype(np.float32)) * np.float32(0.25)
    places = _bytes(both[..., 0])
    return _scaled(scale, grid("IQ2_XXS")[places] * signs()[_sevens(both[..., 1])])


def iq2_xs(raw: Bytes) -> Floats:
    """Dequantizes (n, 74) -> (n, 256)."""
    quants = np.ascontiguousarray(raw[:, 2:66]).view(np.uint16)
    return _scaled(_iq2_scales(raw, raw[:, 66:]), grid("IQ2_XS")[quants & 511] * signs()[quants >> 9])


def iq2_s(raw: Bytes) -> Floats:
    """Dequantizes (n, 82) -> (n, 256)."""
    places = raw[:, 2:34] | bits(raw[:, 66:74, None], FOUR.T, 2).reshape(-1, 32).astype(np.uint16) << 8
    return _scaled(_iq2_scales(raw, raw[:, 74:]), grid("IQ2_S")[places] * _sign_bits(raw[:, 34:66]))


def iq3_xxs(raw: Bytes) -> Floats:
    """Dequantizes (n, 98) -> (n, 256)."""
    both = words(raw[:, 66:])
    scale = _d(raw) * (np.float32(0.5) + (both >> 28).astype(np.float32)) * np.float32(0.5)
    return _scaled(scale, grid("IQ3_XXS")[raw[:, 2:66]].reshape(-1, 32, 8) * signs()[_sevens(both)])


def iq3_s(raw: Bytes) -> Floats:
    """Dequantizes (n, 110) -> (n, 256)."""
    places = raw[:, 2:66] | np.unpackbits(raw[:, 66:74], axis=1, bitorder="little").astype(np.uint16) << 8
    scale = _d(raw) * (1 + 2 * _nibble_pairs(raw[:, 106:]))
    return _scaled(scale, grid("IQ3_S")[places].reshape(-1, 32, 8) * _sign_bits(raw[:, 74:106]))


def iq1_s(raw: Bytes) -> Floats:
    """Dequantizes (n, 50) -> (n, 256)."""
    high = np.ascontiguousarray(raw[:, 34:]).view(np.uint16)
    places = raw[:, 2:34] | ((high[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7) << 8).reshape(-1, 32)
    delta = np.where(high >> 15 == 0, np.float32(0.125), np.float32(-0.125)).repeat(4, axis=1)[:, :, None]
    scale = _d(raw) * (2 * (high >> 12 & 7) + 1).astype(np.float32)
    return _scaled(scale, grid("IQ1_S")[places] + delta)


def iq1_m(raw: Bytes) -> Floats:
    """Dequantizes (n, 56) -> (n, 256). Four bits of d are in each of four words of 16 bits."""
    packed = np.ascontiguousarray(raw[:, 48:]).view(np.uint16)
    d = (packed >> 12 << np.arange(0, 16, 4, dtype=np.uint16)).sum(axis=1, keepdims=True, dtype=np.uint16)
    integers = (packed[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(-1, 16)
    high = bits(raw[:, 32:48, None], TWO.T, 4).reshape(-1, 32)
    places = raw[:, :32] | (high & 7).astype(np.uint16) << 8
    delta = np.where(high & 8 == 0, np.float32(0.125), np.float32(-0.125))[:, :, None]
    scale = d.view(np.float16).astype(np.float32) * (2 * integers + 1).astype(np.float32)
    return _scaled(scale, grid("IQ1_M")[places] + delta)


def tq1_0(raw: Bytes) -> Floats:
    """Dequantizes (n, 54) -> (n, 256)."""
    parts = (raw[:, None, :32], 5), (raw[:, None, 32:48], 5), (raw[:, None, 48:52], 4)
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
    shifted = [(part * powers[:n]).reshape(len(raw), -1) for part, n in parts]
    digits = np.concatenate(shifted, axis=1).astype(np.uint16) * 3 >> 8
    values: Floats = f16(raw[:, 52:]) * (digits.astype(np.float32) - 1)
    return values


def tq2_0(raw: Bytes) -> Floats:
    """Dequantizes (n, 66) -> (n, 256)."""
    return f16(raw[:, 64:]) * (_two_bits(raw).reshape(-1, 256).astype(np.float32) - 1)


def split_in_order(quants: tuple[slice, ...], scales: tuple[slice, ...], d: int, divisor: int) -> Split:
    """The split of formats whose planes hold bytes of the super-block as they are: those of a slice after those of the
    one before. d: where the float16 is that ends the scales, divided."""

    def split(raw: Bytes) -> tuple[Words, Words]:
        factor = (f16(raw[:, d : d + 2]) / divisor).astype(np.float32).view(np.uint32)
        return (
            np.concatenate([words(raw[:, part]) for part in quants], axis=1),
            np.concatenate([*(words(raw[:, part]) for part in scales), factor], axis=1),
        )

    return split


def split_iq3_s(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 110) -> planes (n, 24) and (n, 4)."""
    return split_in_order((slice(2, 66), slice(74, 106)), (slice(66, 74), slice(106, 110)), 0, 1)(raw)


def split_tq1_0(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 54) -> planes (n, 12) and (n, 2)."""
    return split_in_order((slice(0, 48),), (slice(48, 52),), 52, 1)(raw)


def split_iq2_s(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 82) -> planes (n, 16) and (n, 5): of the quants, a block's places and signs are neighbours."""
    quants = np.stack([words(raw[:, 2:34]), words(raw[:, 34:66])], axis=2).reshape(len(raw), -1)
    return quants, split_in_order((slice(2, 34),), (slice(66, 82),), 0, 4)(raw)[1]


def split_iq1_m(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 56) -> planes (n, 8) and (n, 6)."""
    return words(raw[:, :32]), words(raw[:, 32:])


def split_tq2_0(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 66) -> planes (n, 16) and (n, 1)."""
    return pair_words(_two_bits(raw)), f16(raw[:, 64:]).view(np.uint32)


def _d(raw: Bytes) -> Floats:
    return f16(raw[:, :2])


def _scaled(scale: Floats, values: Floats) -> Floats:
    """Scales (n, 8 or 16), each for neighbouring values of the n super-blocks."""
    scaled: Floats = scale.reshape(-1, 1) * values.reshape(scale.size, -1)
    return scaled.reshape(-1, 256)


def _bytes(array: Words) -> Bytes:
    """(n, blocks) -> (n, 4 blocks)."""
    return np.ascontiguousarray(array).view(np.uint8)


def _sevens(array: Words) -> Words:
    """Four times seven bits of each word: (n, 8) -> (n, 32)."""
    sevens: Words = array[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32) & np.uint32(127)
    return sevens.reshape(len(array), -1)


def _sign_bits(raw: Bytes) -> Floats:
    """Bits (n, 32) bytes -> signs (n, 32, 8)."""
    negative = np.unpackbits(raw[:, :, None], axis=2, bitorder="little")
    return np.where(negative == 1, np.float32(-1), np.float32(1))


def _nibble_pairs(raw: Bytes) -> Floats:
    """The low and the high four bits of each byte: (n, k) -> (n, 2 k)."""
    return bits(raw[:, :, None], TWO.T, 4).reshape(len(raw), -1).astype(np.float32)


def _iq2_scales(raw: Bytes, packed: Bytes) -> Floats:
    scales: Floats = _d(raw) * (np.float32(0.5) + _nibble_pairs(packed)) * np.float32(0.25)
    return scales


def _two_bits(raw: Bytes) -> Bytes:
    """(n, 64 or more) -> (n, 8, 32): in each half of the first 64, 32 bytes for four blocks."""
    return bits(raw[:, :64].reshape(-1, 2, 1, 32), FOUR, 2).reshape(-1, 8, 32)
