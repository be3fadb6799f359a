"""The K formats: super-blocks of 256 values, as they lie in the file, to numbers and to planes.

A super-block is eight blocks of 32 values with small integers as scales, and one or two float16 that scale those:

    Q4_K, Q5_K  value = d * scale * q - dmin * minimum; scale and minimum 6 bits, one a block; q 4 or 5 bits
    Q6_K        value = d * scale * (q - 32); scale 8 bits, signed, one for 16 values; q 6 bits

Its planes (`quants.py` says what a plane is) hold the same bits in an order that shaders unpack cheaply:

    quants      32 words: as Q4_0, low four bits of q: byte j of a block holds values j and j + 16
      + Q5_K     8 words: bit 8 j + w of a block's word is the high bit of value 4 w + j
      + Q6_K    16 words: bits 8 j + 2 w of a half block's word are the high bits of value 4 w + j, as those of q - 32
    scales, Q4_K and Q5_K: d and dmin; then for each block, at bits 4 block, low four bits of its scale; of its
                minimum; the scale's high two bits below the minimum's: 4 words
    scales, Q6_K: sixteen scales as signed bytes, d / 4 as float32: 5 words

Q6_K's shader multiplies with the signed bytes 4 (q - 32), which take one operation less to make than q - 32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SUPERBLOCK = 256
"""Values in a super-block."""

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]


def q4_k(raw: Bytes) -> Floats:
    """Dequantizes (n, 144) -> (n, 256)."""
    return _with_minima(raw, _nibbles(raw[:, 16:]))


def q5_k(raw: Bytes) -> Floats:
    """Dequantizes (n, 176) -> (n, 256)."""
    return _with_minima(raw, _q5(raw))


def q6_k(raw: Bytes) -> Floats:
    """Dequantizes (n, 210) -> (n, 256)."""
    scales = _f16(raw[:, 208:]) * raw[:, 192:208].view(np.int8).astype(np.float32)
    integers = _q6(raw).astype(np.float32).reshape(-1, 16, 16) - 32
    values: Floats = scales[:, :, None] * integers
    return values.reshape(-1, SUPERBLOCK)


def split_q4_k(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 144) -> planes (n, 32) and (n, 4)."""
    return _low_words(_nibbles(raw[:, 16:])), _scale_words(raw)


def split_q5_k(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 176) -> planes (n, 40) and (n, 4)."""
    integers = _q5(raw)
    high = _bits(integers, 4, 1).reshape(-1, 8, 8, 4) << _EIGHT
    quants = np.concatenate([_low_words(integers), _words(high.sum(axis=2, dtype=np.uint8))], axis=1)
    return quants, _scale_words(raw)


def split_q6_k(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 210) -> planes (n, 48) and (n, 5)."""
    integers = _q6(raw)
    high = (_bits(integers, 4, 2) ^ np.uint8(2)).reshape(-1, 16, 4, 4) << _FOUR
    quants = np.concatenate([_low_words(integers), _words(high.sum(axis=2, dtype=np.uint8))], axis=1)
    quarter = (_f16(raw[:, 208:]) / 4).astype(np.float32)
    return quants, np.concatenate([_words(raw[:, 192:208]), quarter.view(np.uint32)], axis=1)


def _f16(raw: Bytes) -> Floats:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _words(raw: Bytes) -> Words:
    """(n, ...) bytes -> (n, words)."""
    return np.ascontiguousarray(raw).reshape(len(raw), -1).view(np.uint32)


_TWO, _FOUR, _EIGHT = (np.arange(0, 8, step, dtype=np.uint8)[:, None] for step in (4, 2, 1))


def _bits(raw: Bytes, first: int | Bytes, n_bits: int) -> Bytes:
    return raw >> np.asarray(first, np.uint8) & np.uint8((1 << n_bits) - 1)


def _joined(low: Bytes, high: Bytes, n_low_bits: int) -> Bytes:
    return low | high << np.uint8(n_low_bits)


def _nibbles(raw: Bytes) -> Bytes:
    """(n, 128) -> (n, 8, 32): of 32 bytes, the low nibbles are a block and the high ones the next."""
    return _bits(raw.reshape(-1, 4, 1, 32), _TWO, 4).reshape(-1, 8, 32)


def _q5(raw: Bytes) -> Bytes:
    """(n, 176) -> (n, 8, 32): bit `block` of byte i of the high bits belongs to value i."""
    return _joined(_nibbles(raw[:, 48:]), _bits(raw[:, None, 16:48], _EIGHT, 1), 4)


def _q6(raw: Bytes) -> Bytes:
    """(n, 210) -> (n, 8, 32): in each half, 64 bytes of low bits for two and two blocks, 32 of high bits for four."""
    low = _bits(raw[:, :128].reshape(-1, 2, 1, 64), _TWO, 4)
    high = _bits(raw[:, 128:192].reshape(-1, 2, 1, 32), _FOUR, 2)
    return _joined(low.reshape(-1, 8, 32), high.reshape(-1, 8, 32), 4)


def _scales_and_minima(raw: Bytes) -> tuple[Bytes, Bytes]:
    """Six-bit scales and minima (n, 8) of Q4_K and Q5_K, from bytes 4-15."""
    first, second, both = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = [_bits(first, 0, 6), _joined(_bits(both, 0, 4), _bits(first, 6, 2), 4)]
    minima = [_bits(second, 0, 6), _joined(_bits(both, 4, 4), _bits(second, 6, 2), 4)]
    return np.concatenate(scales, axis=1), np.concatenate(minima, axis=1)


def _with_minima(raw: Bytes, integers: Bytes) -> Floats:
    scales, minima = _scales_and_minima(raw)
    scale, minimum = _f16(raw[:, :2]) * scales, _f16(raw[:, 2:4]) * minima
    values: Floats = scale[:, :, None] * integers - minimum[:, :, None]
    return values.reshape(-1, SUPERBLOCK)


def _low_words(integers: Bytes) -> Words:
    """(n, 8, 32) -> (n, 32): byte j of a block holds the low four bits of values j and j + 16."""
    low = _bits(integers, 0, 4)
    return _words(_joined(low[..., :16], low[..., 16:], 4))


def _scale_words(raw: Bytes) -> Words:
    """(n, 144 or 176) -> (n, 4)."""
    scales, minima = _scales_and_minima(raw)
    high = _joined(_bits(scales, 4, 2), _bits(minima, 4, 2), 2)
    nibbles = np.stack([_bits(scales, 0, 4), _bits(minima, 0, 4), high], axis=1)
    return np.concatenate([_words(raw[:, :4]), _words(_joined(nibbles[..., ::2], nibbles[..., 1::2], 4))], axis=1)
