"""Block formats of GGUF weights: their bytes, their planes on the GPU, and numpy dequantization.

This is the truth that every shader is tested against. It knows bytes and numbers, not files or devices.

A *plane* is an array of uint32 words whose rows of 16 bytes a GPU loads aligned and coalesced. A format
has a plane of quants (or of the numbers themselves) and, where it has scales, a plane of scales. `blocks.py` and
`superblocks.py` say what they hold.

Shaders treat every format in blocks of 32 values. Planes are made unit by unit: a unit is the least number of
blocks that begin at a whole word in both planes.
Source of the layouts: the GGUF format description, and `gguf.quants`, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vkllm.errors import UnsupportedModel
from vkllm.formats import blocks, grids, superblocks
from vkllm.formats.bits import Bytes, Floats, Words, f16
from vkllm.formats.codebooks import codebook
from vkllm.formats.superblocks import SUPERBLOCK

BLOCK = 32
"""Values in a block of shaders and of activations; columns are a multiple of it."""


@dataclass(frozen=True)
class Format:
    """A weight format.

    block, block_bytes: values and bytes of a block in the file; columns are a multiple of `block`. unit: values of a
    unit. quant_words, scale_words: uint32 words of a unit in each plane (0: no plane of scales). dequantize: uint8
    (n, block_bytes) -> float32 (n, block); of plain numbers any bytes. split: uint8 (n, unit_bytes) -> planes
    (n, quant_words) and (n, scale_words). table_words: words of shared memory that kernels fill with a table.
    has_codebook: whether that is the format's codebook, with which its plane of scales begins.
    """

    name: str
    block: int
    block_bytes: int
    unit: int
    quant_words: int
    scale_words: int
    dequantize: Callable[[Bytes], Floats]
    split: Callable[[Bytes], tuple[Words, Words]]
    table_words: int = 0
    has_codebook: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether a block carries scales, so that kernels use integer arithmetic."""
        return self.scale_words > 0

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit in the file."""
        return self.unit // self.block * self.block_bytes

    def plane_words(self, n_values: int) -> tuple[int, int]:
        """Words of the quants and the scales plane of n_values, which are padded to whole units."""
        n_units = -(-n_values // self.unit)
        codebook_words = self.table_words if self.has_codebook else 0
        return n_units * self.quant_words, n_units * self.scale_words + codebook_words

    @property
    def codebook(self) -> Words:
        """The words that the plane of scales begins with, mostly none."""
        return codebook(self.name) if self.has_codebook else np.zeros(0, np.uint32)


def weight_format(name: str) -> Format:
    """The format of that GGML name; raises UnsupportedModel for one that vkllm has no kernels for."""
    if name not in FORMATS:
        raise UnsupportedModel(f"quantization {name} is not supported; supported are {', '.join(FORMATS)}")
    return FORMATS[name]


def dequantize(raw: Bytes, name: str, shape: tuple[int, ...]) -> Floats:
    """Raw tensor bytes (n_bytes,) -> float32 of `shape`."""
    fmt = weight_format(name)
    # vectors of plain numbers need not be whole blocks
    return fmt.dequantize(raw.reshape(-1, fmt.block_bytes) if fmt.is_quantized else raw).reshape(shape)


def split_planes(raw: Bytes, name: str) -> tuple[Words, Words]:
    """Raw tensor bytes -> (quants, scales) planes, as `shaders/split_planes.comp` makes them on the GPU."""
    fmt = weight_format(name)
    units = np.zeros((-(-len(raw) // fmt.unit_bytes), fmt.unit_bytes), np.uint8)
    units.reshape(-1)[: len(raw)] = raw
    quants, scales = fmt.split(units)
    return quants.reshape(-1), np.concatenate([fmt.codebook, scales.reshape(-1)])


Q16_LIMIT = 127 * 256
"""Largest magnitude of an integer of a q16 block: its high byte then stays within -127..127."""


def quantize_q16(x: Floats) -> tuple[Words, Floats]:
    """Activations (T, columns) -> q16 blocks, as `shaders/lib/q16.glsl` makes them.

    A block of 32 values is 32 integers of 16 bits times a scale; value = scale * (256 * high + low) with signed
    bytes high and low, so that two int8 dot products make a 16-bit one. Returns words (T, 4, n_blocks, 4): high
    bytes of values 0-15, of 16-31, low bytes of 0-15, of 16-31; and (T, n_blocks, 2): scale, scale * sum of integers.
    """
    values = x.reshape(len(x), -1, BLOCK)
    largest = np.abs(values).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(Q16_LIMIT), largest, out=np.zeros_like(largest), where=largest > 0)
    integers = np.rint(values * inverse).astype(np.int32)
    high = (integers + 128) >> 8
    halves = np.concatenate([high, integers - (high << 8)], axis=2).astype(np.int8)
    words = halves.reshape(*values.shape[:2], 4, 16).swapaxes(1, 2).copy().view(np.uint32)
    scale = largest / np.float32(Q16_LIMIT)
    scales = np.concatenate([scale, scale * integers.sum(axis=2, keepdims=True)], axis=2)
    return words, scales.astype(np.float32)


def dequantize_q16(words: Words, scales: Floats) -> Floats:
    """q16 blocks, words (T, 4, n_blocks, 4) and scales (T, n_blocks, 2) -> float32 (T, columns)."""
    halves = np.ascontiguousarray(words).view(np.int8).astype(np.float32)
    high, low = halves[:, :2].swapaxes(1, 2), halves[:, 2:].swapaxes(1, 2)
    values: Floats = scales[..., :1, None] * (256 * high + low)
    return values.reshape(len(words), -1)


def _of_grid(
    name: str,
    block_bytes: int,
    quant_words: int,
    scale_words: int,
    codebook_words: int,
    dequantize: Callable[[Bytes], Floats],
    split: Callable[[Bytes], tuple[Words, Words]],
) -> Format:
    """A format of super-blocks that has a codebook."""
    block = SUPERBLOCK
    return Format(name, block, block_bytes, block, quant_words, scale_words, dequantize, split, codebook_words, True)


FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format("F32", 32, 128, 32, 32, 0, blocks.f32, blocks.split_as_is(0, 1)),
        Format("F16", 32, 64, 32, 16, 0, f16, blocks.split_as_is(0, 1)),
        Format("BF16", 32, 64, 32, 16, 0, blocks.bf16, blocks.split_as_is(0, 1)),
        Format("Q4_0", 32, 18, 64, 8, 1, blocks.q4_0, blocks.split_as_is(2, 2)),
        Format("Q4_1", 32, 20, 64, 8, 2, blocks.q4_1, blocks.split_as_is(4, 2)),
        Format("Q5_0", 32, 22, 256, 40, 4, blocks.q5_0, blocks.split_q5_0),
        Format("Q5_1", 32, 24, 256, 40, 8, blocks.q5_1, blocks.split_q5_1),
        Format("Q8_0", 32, 34, 64, 16, 1, blocks.q8_0, blocks.split_as_is(2, 2)),
        Format("Q2_K", SUPERBLOCK, 84, SUPERBLOCK, 16, 5, superblocks.q2_k, superblocks.split_q2_k),
        Format("Q3_K", SUPERBLOCK, 110, SUPERBLOCK, 24, 4, superblocks.q3_k, superblocks.split_q3_k),
        Format("Q4_K", SUPERBLOCK, 144, SUPERBLOCK, 32, 4, superblocks.q4_k, superblocks.split_q4_k),
        Format("Q5_K", SUPERBLOCK, 176, SUPERBLOCK, 40, 4, superblocks.q5_k, superblocks.split_q5_k),
        Format("Q6_K", SUPERBLOCK, 210, SUPERBLOCK, 48, 5, superblocks.q6_k, superblocks.split_q6_k),
        Format("IQ4_NL", 32, 18, 64, 8, 1, blocks.iq4_nl, blocks.split_iq4_nl),
        Format("IQ4_XS", SUPERBLOCK, 136, SUPERBLOCK, 32, 2, superblocks.iq4_xs, superblocks.split_iq4_xs),
        Format("MXFP4", 32, 17, 128, 16, 1, blocks.mxfp4, blocks.split_mxfp4),
        Format("NVFP4", 64, 36, 64, 8, 1, blocks.nvfp4, blocks.split_nvfp4),
        _of_grid("IQ1_S", 50, 8, 5, 1024, grids.iq1_s, grids.split_in_order((slice(2, 34),), (slice(34, 50),), 0, 8)),
        _of_grid("IQ1_M", 56, 8, 6, 1024, grids.iq1_m, grids.split_iq1_m),
        _of_grid("IQ2_XXS", 66, 16, 1, 128, grids.iq2_xxs, grids.split_in_order((slice(2, 66),), (), 0, 4)),
        _of_grid("IQ2_XS", 74, 16, 3, 256, grids.iq2_xs, grids.split_in_order((slice(2, 66),), (slice(66, 74),), 0, 4)),
        _of_grid("IQ2_S", 82, 16, 5, 512, grids.iq2_s, grids.split_iq2_s),
        _of_grid(
            "IQ3_XXS", 98, 24, 1, 256, grids.iq3_xxs, grids.split_in_order((slice(2, 66), slice(66, 98)), (), 0, 2)
        ),
        _of_grid("IQ3_S", 110, 24, 4, 512, grids.iq3_s, grids.split_iq3_s),
        Format("TQ1_0", SUPERBLOCK, 54, SUPERBLOCK, 12, 2, grids.tq1_0, grids.split_tq1_0),
        Format("TQ2_0", SUPERBLOCK, 66, SUPERBLOCK, 16, 1, grids.tq2_0, grids.split_tq2_0),
    )
}
