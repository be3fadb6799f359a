"""Formats with blocks of 32 or 64 values, as they lie in the file, to numbers and to planes.

    F32, F16, BF16  the numbers; 32 or 16 words a block
    Q4_0    d, 16 bytes       value = d * (q - 8)
    Q4_1    d, m, 16 bytes    value = d * q + m
    Q5_0    d, 4, 16 bytes    value = d * (q - 16)
    Q5_1    d, m, 4, 16 bytes value = d * q + m
    Q8_0    d, 32 bytes       value = d * q, q signed
    IQ4_NL  d, 16 bytes       value = d * IQ4_VALUES[q]
    MXFP4   e, 16 bytes       value = 2^(e - 128) * FP4_VALUES[q], e a byte
    NVFP4   4 scales, 32 bytes  64 values; value = scale / 2 * FP4_VALUES[q], a scale for 16 values

d and m are float16. Byte j of the 16 holds the low four bits of values j and j + 16; the 4 hold a high bit each. In
NVFP4, scales have four bits of exponent and three of mantissa; byte j of eight holds values j and j + 8 of 16.
Their planes (`quants.py` says what a plane is):

    quants, Q4_0 and Q4_1, 4 words a block     as in the file
    Q5_0, Q5_1, 40 words for 8 blocks          as Q4_0, then a word a block: bit 8 j + w is value 4 w + j's high bit
    Q8_0, 8 words a block                      as in the file
    IQ4_NL, MXFP4, NVFP4, 4 words a block      word k holds bit k of IQ4_CODES[q] or FP4_CODES[q]: bit 8 j + w is
                                               value 4 w + j's
    scales, Q4_0, Q5_0, Q8_0, IQ4_NL           d, two blocks a word
    Q4_1, Q5_1                                 d and m, a block a word
    MXFP4, NVFP4                               bytes as in the file, of four blocks or of two a word
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vkllm.formats.bits import (
    Bytes,
    Floats,
    Words,
    bit_words,
    bits,
    bits_of_words,
    code_words,
    f16,
    joined,
    nibble_words,
    nibbles,
    words,
)

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""What the four bits of IQ4_NL and IQ4_XS stand for."""

IQ4_CODES = np.array([0, 2, 6, 14, 7, 15, 1, 3, 8, 4, 10, 5, 12, 9, 11, 13], np.uint8)
"""The four bits in the plane for each of them (`shaders/lib/iq4_values.glsl`)."""

FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice what four bits of MXFP4 stand for: a sign, two bits of exponent, one of mantissa."""

FP4_CODES = np.array([4, 5, 9, 13, 12, 1, 2, 10, 4, 15, 11, 7, 6, 3, 14, 0], np.uint8)
"""The four bits in the plane for each of them (`shaders/lib/fp4_values.glsl`); minus zero has those of zero."""


def f32(raw: Bytes) -> Floats:
    """The numbers of any bytes of F32."""
    return np.ascontiguousarray(raw).view(np.float32)


def bf16(raw: Bytes) -> Floats:
    """The numbers of any bytes of BF16."""
    return (np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def split_as_is(scale_bytes: int, unit_blocks: int) -> Callable[[Bytes], tuple[Words, Words]]:
    """The split of formats whose blocks begin with their scales and whose quants lie in the plane as in the file."""

    def split(units: Bytes) -> tuple[Words, Words]:
        blocks = units.reshape(len(units), unit_blocks, -1)
        return words(blocks[:, :, scale_bytes:]), words(blocks[:, :, :scale_bytes])

    return split


def q4_0(raw: Bytes) -> Floats:
    """Dequantizes (n, 18) -> (n, 32)."""
    return f16(raw[:, :2]) * (nibbles(raw[:, 2:]).astype(np.float32) - 8)


def q4_1(raw: Bytes) -> Floats:
    """Dequantizes (n, 20) -> (n, 32)."""
    return f16(raw[:, :2]) * nibbles(raw[:, 4:]).astype(np.float32) + f16(raw[:, 2:4])


def q5_0(raw: Bytes) -> Floats:
    """Dequantizes (n, 22) -> (n, 32)."""
    return f16(raw[:, :2]) * (_five_bits(raw).astype(np.float32) - 16)


def q5_1(raw: Bytes) -> Floats:
    """Dequantizes (n, 24) -> (n, 32)."""
    return f16(raw[:, :2]) * _five_bits(raw).astype(np.float32) + f16(raw[:, 2:4])


def q8_0(raw: Bytes) -> Floats:
    """Dequantizes (n, 34) -> (n, 32)."""
    return f16(raw[:, :2]) * np.ascontiguousarray(raw[:, 2:]).view(np.int8).astype(np.float32)


def iq4_nl(raw: Bytes) -> Floats:
    """Dequantizes (n, 18) -> (n, 32)."""
    values: Floats = f16(raw[:, :2]) * IQ4_VALUES[nibbles(raw[:, 2:])]
    return values


def mxfp4(raw: Bytes) -> Floats:
    """Dequantizes (n, 17) -> (n, 32). The two smallest scales are float32 that are not normalized."""
    e = raw[:, :1].astype(np.uint32)
    scale = np.where(e < 2, np.uint32(1 << 21) << e, (e - 1) << 23).astype(np.uint32).view(np.float32)
    values: Floats = scale * FP4_VALUES[nibbles(raw[:, 1:])]
    return values


def nvfp4(raw: Bytes) -> Floats:
    """Dequantizes (n, 36) -> (n, 64)."""
    byte = raw[:, :4]
    exponent, mantissa = (byte >> 3 & 15).astype(np.int32), (byte & 7).astype(np.float32)
    scale = np.where(exponent == 0, np.ldexp(mantissa, -10), np.ldexp(1 + mantissa / 8, exponent - 8))
    scale = np.where(byte == 0x7F, np.float32(0), scale)
    values: Floats = scale[:, :, None] * FP4_VALUES[nibbles(raw[:, 4:].reshape(-1, 4, 8))]
    return values.reshape(-1, 64)


def split_q5_0(units: Bytes) -> tuple[Words, Words]:
    """Splits (n, 176) -> planes (n, 40) and (n, 4)."""
    return _split_five_bits(units, 2)


def split_q5_1(units: Bytes) -> tuple[Words, Words]:
    """Splits (n, 192) -> planes (n, 40) and (n, 8)."""
    return _split_five_bits(units, 4)


def split_iq4_nl(units: Bytes) -> tuple[Words, Words]:
    """Splits (n, 36) -> planes (n, 8) and (n, 1)."""
    blocks = units.reshape(len(units), 2, 18)
    return code_words(nibbles(blocks[:, :, 2:]), IQ4_CODES), words(blocks[:, :, :2])


def split_mxfp4(units: Bytes) -> tuple[Words, Words]:
    """Splits (n, 68) -> planes (n, 16) and (n, 1)."""
    blocks = units.reshape(len(units), 4, 17)
    return code_words(nibbles(blocks[:, :, 1:]), FP4_CODES), words(blocks[:, :, :1])


def split_nvfp4(units: Bytes) -> tuple[Words, Words]:
    """Splits (n, 36) -> planes (n, 8) and (n, 1)."""
    integers = nibbles(units[:, 4:].reshape(len(units), 4, 8))
    return code_words(integers.reshape(len(units), 2, 32), FP4_CODES), words(units[:, :4])


def _five_bits(raw: Bytes) -> Bytes:
    """(n, 22 or 24) -> (n, 32): the last 20 bytes are a word of high bits and the low ones."""
    return joined(nibbles(raw[:, -16:]), bits_of_words(raw[:, -20:-16]), 4)


def _split_five_bits(units: Bytes, scale_bytes: int) -> tuple[Words, Words]:
    blocks = units.reshape(8 * len(units), -1)
    integers = _five_bits(blocks).reshape(len(units), 8, 32)
    quants = np.concatenate([nibble_words(integers), bit_words(bits(integers, 4, 1))], axis=1)
    return quants, words(blocks[:, :scale_bytes].reshape(len(units), -1))
