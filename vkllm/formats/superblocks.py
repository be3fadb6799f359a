"""The K formats and IQ4_XS: super-blocks of 256 values, as they lie in the file, to numbers and to planes.

A super-block is eight blocks of 32 values with small integers as scales, and one or two float16 that scale those:

    Q4_K, Q5_K  value = d * scale * q - dmin * minimum; scale and minimum 6 bits, one a block; q 4 or 5 bits
    Q2_K        the same; scale and minimum 4 bits, one for 16 values; q 2 bits
    Q3_K        value = d * (scale - 32) * (q - 4); scale 6 bits, one for 16 values; q 3 bits
    Q6_K        value = d * scale * (q - 32); scale 8 bits, signed, one for 16 values; q 6 bits
    IQ4_XS      value = d * (scale - 32) * IQ4_VALUES[q]; scale 6 bits, one a block; q 4 bits

Its planes (`quants.py` says what a plane is) hold the same bits in an order that shaders unpack cheaply:

    quants, Q4_K, Q5_K, Q6_K  32 words: as Q4_0, low four bits of q: byte j of a block holds values j and j + 16
      + Q5_K     8 words: bit 8 j + w of a block's word is the high bit of value 4 w + j
      + Q6_K    16 words: bits 8 j + 2 w of a half block's word are the high bits of value 4 w + j, as those of q - 32
    quants, Q2_K        16 words: bits 8 j + 2 w of a half block's word are the low bits of value 4 w + j
    quants, Q3_K        16 words, two a block, and 8 words, one a block, of which the i-th has in byte j the three bits
                        of q - 4 of values 8 i + j, at bit 5, and 8 i + 4 + j, at bit 2; at bit 0 the first two have
                        the upper two bits of values 24 + j and 28 + j, the third the lowest of both
    quants, IQ4_XS      32 words: as IQ4_NL
    scales, Q4_K and Q5_K: d and dmin; then for each block, at bits 4 block, low four bits of its scale; of its
                minimum; the scale's high two bits below the minimum's: 4 words
    scales, Q2_K: sixteen bytes as in the file, a scale below its minimum; d and dmin: 5 words
    scales, Q3_K, two words for four blocks: a byte each of the first scale and, above, the second's low two bits;
                then, four bits each, the second's others, and above them d: 4 words
    scales, Q6_K: sixteen scales as signed bytes, d / 4 as float32: 5 words
    scales, IQ4_XS: as in the file, d and the scales' high two bits; their low four bits: 2 words

Q6_K's shader multiplies with the signed bytes 4 (q - 32), and Q3_K's with 32 (q - 4): they take fewer operations to
make, because the high bits bring the sign.
"""

from __future__ import annotations

import numpy as np

from vkllm.formats.bits import (
    EIGHT,
    FOUR,
    TWO,
    Bytes,
    Floats,
    Words,
    bit_words,
    bits,
    code_words,
    f16,
    joined,
    nibble_words,
    nibbles,
    pair_words,
    words,
)
from vkllm.formats.blocks import IQ4_CODES, IQ4_VALUES

SUPERBLOCK = 256
"""Values in a super-block."""


def q2_k(raw: Bytes) -> Floats:
    """Dequantizes (n, 84) -> (n, 256)."""
    scale, minimum = (f16(raw[:, 80:82]) * bits(raw[:, :16], 0, 4)), (f16(raw[:, 82:]) * bits(raw[:, :16], 4, 4))
    values: Floats = scale[:, :, None] * _two_bits(raw[:, 16:80]).reshape(-1, 16, 16) - minimum[:, :, None]
    return values.reshape(-1, SUPERBLOCK)


def q3_k(raw: Bytes) -> Floats:
    """Dequantizes (n, 110) -> (n, 256)."""
    scales = f16(raw[:, 108:]) * (_q3_scales(raw).astype(np.float32) - 32)
    values: Floats = scales[:, :, None] * (_q3(raw).astype(np.float32).reshape(-1, 16, 16) - 4)
    return values.reshape(-1, SUPERBLOCK)


def q4_k(raw: Bytes) -> Floats:
    """Dequantizes (n, 144) -> (n, 256)."""
    return _with_minima(raw, _four_bits(raw[:, 16:]))


def q5_k(raw: Bytes) -> Floats:
    """Dequantizes (n, 176) -> (n, 256)."""
    return _with_minima(raw, _q5(raw))


def q6_k(raw: Bytes) -> Floats:
    """Dequantizes (n, 210) -> (n, 256)."""
    scales = f16(raw[:, 208:]) * raw[:, 192:208].view(np.int8).astype(np.float32)
    integers = _q6(raw).astype(np.float32).reshape(-1, 16, 16) - 32
    values: Floats = scales[:, :, None] * integers
    return values.reshape(-1, SUPERBLOCK)


def iq4_xs(raw: Bytes) -> Floats:
    """Dequantizes (n, 136) -> (n, 256)."""
    high = bits(raw[:, 2:4, None], FOUR.T, 2).reshape(-1, 8)
    scale = joined(bits(raw[:, 4:8, None], TWO.T, 4).reshape(-1, 8), high, 4).astype(np.float32) - 32
    values: Floats = (f16(raw[:, :2]) * scale)[:, :, None] * IQ4_VALUES[nibbles(raw[:, 8:].reshape(-1, 8, 16))]
    return values.reshape(-1, SUPERBLOCK)


def split_q2_k(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 84) -> planes (n, 16) and (n, 5)."""
    return pair_words(_two_bits(raw[:, 16:80])), np.concatenate([words(raw[:, :16]), words(raw[:, 80:])], axis=1)


def split_q3_k(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 110) -> planes (n, 24) and (n, 4)."""
    q = (_q3(raw) ^ np.uint8(4)).reshape(-1, 8, 8, 4)  # q - 4 in two's complement
    upper, lowest = bits(q[:, :, 6:], 1, 2), bits(q[:, :, 6:], 0, 1)
    low = joined(upper, joined(q[:, :, 1:4:2], q[:, :, :4:2], 3), 2)
    high = joined(joined(lowest[:, :, 0], lowest[:, :, 1], 1), joined(q[:, :, 5], q[:, :, 4], 3), 2)
    first, second = _q3_scales(raw).reshape(-1, 8, 2).transpose(2, 0, 1)
    bytes_of_first = joined(first, bits(second, 0, 2), 6).reshape(-1, 2, 4)
    of_second = bits(second, 2, 4).reshape(-1, 2, 2, 2)
    others = joined(of_second[..., 0], of_second[..., 1], 4)
    d = np.broadcast_to(raw[:, None, 108:], others.shape)
    return (
        np.concatenate([words(low), words(high)], axis=1),
        words(np.concatenate([bytes_of_first, others, d], axis=2)),
    )


def split_q4_k(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 144) -> planes (n, 32) and (n, 4)."""
    return nibble_words(_four_bits(raw[:, 16:])), _scale_words(raw)


def split_q5_k(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 176) -> planes (n, 40) and (n, 4)."""
    integers = _q5(raw)
    return np.concatenate([nibble_words(integers), bit_words(bits(integers, 4, 1))], axis=1), _scale_words(raw)


def split_q6_k(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 210) -> planes (n, 48) and (n, 5)."""
    integers = _q6(raw)
    quants = np.concatenate([nibble_words(integers), pair_words(bits(integers, 4, 2) ^ np.uint8(2))], axis=1)
    quarter = (f16(raw[:, 208:]) / 4).astype(np.float32)
    return quants, np.concatenate([words(raw[:, 192:208]), quarter.view(np.uint32)], axis=1)


def split_iq4_xs(raw: Bytes) -> tuple[Words, Words]:
    """Splits (n, 136) -> planes (n, 32) and (n, 2)."""
    return code_words(nibbles(raw[:, 8:].reshape(-1, 8, 16)), IQ4_CODES), words(raw[:, :8])


def _two_bits(raw: Bytes) -> Bytes:
    """(n, 64) -> (n, 8, 32): in each half, 32 bytes for four blocks."""
    return bits(raw.reshape(-1, 2, 1, 32), FOUR, 2).reshape(-1, 8, 32)


def _four_bits(raw: Bytes) -> Bytes:
    """(n, 128) -> (n, 8, 32): of 32 bytes, the low nibbles are a block and the high ones the next."""
    return bits(raw.reshape(-1, 4, 1, 32), TWO, 4).reshape(-1, 8, 32)


def _q3(raw: Bytes) -> Bytes:
    """(n, 110) -> (n, 8, 32): bit `block` of byte i of the high bits belongs to value i."""
    return joined(_two_bits(raw[:, 32:96]), bits(raw[:, None, :32], EIGHT, 1), 2)


def _q3_scales(raw: Bytes) -> Bytes:
    """(n, 110) -> (n, 16): of the low four bits, the last eight are above the first; four high pairs a byte."""
    low = bits(raw[:, None, 96:104], TWO, 4).reshape(-1, 16)
    return joined(low, bits(raw[:, None, 104:108], FOUR, 2).reshape(-1, 16), 4)


def _q5(raw: Bytes) -> Bytes:
    """(n, 176) -> (n, 8, 32): bit `block` of byte i of the high bits belongs to value i."""
    return joined(_four_bits(raw[:, 48:]), bits(raw[:, None, 16:48], EIGHT, 1), 4)


def _q6(raw: Bytes) -> Bytes:
    """(n, 210) -> (n, 8, 32): in each half, 64 bytes of low bits for two and two blocks, 32 of high bits for four."""
    low = bits(raw[:, :128].reshape(-1, 2, 1, 64), TWO, 4)
    high = bits(raw[:, 128:192].reshape(-1, 2, 1, 32), FOUR, 2)
    return joined(low.reshape(-1, 8, 32), high.reshape(-1, 8, 32), 4)


def _scales_and_minima(raw: Bytes) -> tuple[Bytes, Bytes]:
    """Six-bit scales and minima (n, 8) of Q4_K and Q5_K, from bytes 4-15."""
    first, second, both = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = [bits(first, 0, 6), joined(bits(both, 0, 4), bits(first, 6, 2), 4)]
    minima = [bits(second, 0, 6), joined(bits(both, 4, 4), bits(second, 6, 2), 4)]
    return np.concatenate(scales, axis=1), np.concatenate(minima, axis=1)


def _with_minima(raw: Bytes, integers: Bytes) -> Floats:
    scales, minima = _scales_and_minima(raw)
    scale, minimum = f16(raw[:, :2]) * scales, f16(raw[:, 2:4]) * minima
    values: Floats = scale[:, :, None] * integers - minimum[:, :, None]
    return values.reshape(-1, SUPERBLOCK)


def _scale_words(raw: Bytes) -> Words:
    """(n, 144 or 176) -> (n, 4)."""
    scales, minima = _scales_and_minima(raw)
    high = joined(bits(scales, 4, 2), bits(minima, 4, 2), 2)
    both = np.stack([bits(scales, 0, 4), bits(minima, 0, 4), high], axis=1)
    return np.concatenate([words(raw[:, :4]), words(joined(both[..., ::2], both[..., 1::2], 4))], axis=1)
