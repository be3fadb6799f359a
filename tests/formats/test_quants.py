"""Block formats against the gguf package's own dequantization, planes, and q16 activations."""

import gguf
import numpy as np
import pytest
from random_weights import quantized

from vkllm.errors import UnsupportedModel
from vkllm.formats.blocks import FP4_CODES, IQ4_CODES
from vkllm.formats.quants import FORMATS, dequantize, dequantize_q16, quantize_q16, split_planes, weight_format


def random_raw(fmt: str, n_rows: int, n_blocks: int, seed: int) -> np.ndarray:
    block = weight_format(fmt).block
    values = np.random.default_rng(seed).normal(0, 1, (n_rows, n_blocks * block)).astype(np.float32)
    values[0, :block] = 0  # a block of zeros has a scale of zero
    return quantized(values, fmt)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fmt", FORMATS)
def test_dequantization_equals_that_of_gguf(fmt: str, seed: int) -> None:
    raw = random_raw(fmt, 5, 3, seed)
    kind = gguf.GGMLQuantizationType[fmt]
    element = {"F32": np.float32, "F16": np.float16}.get(fmt, np.uint8)
    wanted = gguf.dequantize(raw.view(element).reshape(5, -1), kind).astype(np.float32)
    assert np.array_equal(dequantize(raw, fmt, (5, 3 * weight_format(fmt).block)), wanted)


@pytest.mark.parametrize("fmt", FORMATS)
def test_sizes_are_those_of_gguf(fmt: str) -> None:
    block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[fmt]]
    assert weight_format(fmt).block_bytes * block == weight_format(fmt).block * n_bytes


@pytest.mark.parametrize("fmt", FORMATS)
def test_planes_take_hardly_more_than_the_file(fmt: str) -> None:
    n_blocks = 96
    n_bytes = 4 * sum(weight_format(fmt).plane_words(n_blocks * weight_format(fmt).block))
    n_bytes -= weight_format(fmt).codebook.nbytes
    assert 1 <= n_bytes / (n_blocks * weight_format(fmt).block_bytes) < 1.05


@pytest.mark.parametrize("n_blocks", [1, 2, 5])
@pytest.mark.parametrize("fmt", ["Q4_0", "Q4_1", "Q8_0"])
def test_planes_hold_every_byte_of_the_blocks(fmt: str, n_blocks: int) -> None:
    raw = random_raw(fmt, 1, n_blocks, 0)
    quants, scales = split_planes(raw, fmt)
    assert (len(quants), len(scales)) == weight_format(fmt).plane_words(32 * n_blocks)
    quant_bytes = 32 * 4 * weight_format(fmt).quant_words // weight_format(fmt).unit
    scale_bytes = weight_format(fmt).block_bytes - quant_bytes
    joined = np.concatenate(
        [
            scales.view(np.uint8)[: n_blocks * scale_bytes].reshape(n_blocks, -1),
            quants.view(np.uint8)[: n_blocks * quant_bytes].reshape(n_blocks, -1),
        ],
        axis=1,
    )
    assert np.array_equal(joined.reshape(-1), raw)


def half(word: int, upper: int = 0) -> float:
    return float(np.array([word], np.uint32).view(np.float16)[upper])


def single(word: int) -> float:
    return float(np.array([word], np.uint32).view(np.float32)[0])


def signed(word: int, byte: int) -> int:
    return int(np.array([word], np.uint32).view(np.int8)[byte])


def value_in_planes(fmt: str, quants: list[int], scales: list[int], block: int, i: int) -> float:
    """Value i of a block of a unit, read from its planes as formats/blocks.py and superblocks.py describe them."""
    word, byte, i_half = i // 4, i % 4, i // 16
    if fmt in ("IQ4_NL", "IQ4_XS", "MXFP4"):
        code = sum((quants[4 * block + k] >> (8 * byte + word) & 1) << k for k in range(4))
        q = (FP4_CODES if fmt == "MXFP4" else IQ4_CODES).tolist().index(code)
    elif fmt == "Q3_K":
        third = (quants[2 * block + word % 2] & 0x3030303) << 1 | quants[16 + block] >> word % 2 & 0x1010101
        fields = [*quants[2 * block : 2 * block + 2], quants[16 + block]]
        q = (third if word > 5 else fields[word // 2] >> (2 if word % 2 else 5)) >> 8 * byte & 7
    elif fmt == "Q2_K":
        q = quants[2 * block + i_half] >> (8 * byte + 2 * (word % 4)) & 3
    else:
        q = quants[4 * block + word % 4] >> (8 * byte + i_half * 4) & 15
    if fmt in ("Q5_0", "Q5_1", "Q5_K"):
        q += (quants[32 + block] >> (8 * byte + word) & 1) << 4
    if fmt == "Q5_0":
        return half(scales[block // 2], block % 2) * (q - 16)
    if fmt == "Q5_1":
        return half(scales[block]) * q + half(scales[block], 1)
    if fmt == "IQ4_NL":
        return half(scales[block // 2], block % 2) * float(gguf.quants.IQ4_NL.kvalues[q])
    if fmt == "MXFP4":
        return 2.0 ** ((scales[0] >> 8 * block & 255) - 128) * gguf.quants.MXFP4.kvalues[q]
    if fmt == "IQ4_XS":
        scale = (scales[1] >> 4 * block & 15) + (scales[0] >> (16 + 2 * block) & 3) * 16
        return half(scales[0]) * (scale - 32) * float(gguf.quants.IQ4_NL.kvalues[q])
    if fmt == "Q2_K":
        both = scales[block // 2] >> (16 * (block % 2) + 8 * i_half)
        return half(scales[4]) * (both & 15) * q - half(scales[4], 1) * (both >> 4 & 15)
    if fmt == "Q3_K":
        low, high = scales[2 * (block // 4)] >> 8 * (block % 4) & 255, scales[2 * (block // 4) + 1]
        scale = low >> 6 | (high >> 4 * (block % 4) & 15) << 2 if i_half else low & 63
        return half(high, 1) * (scale - 32) * (q - 8 * (q > 3))
    if fmt == "Q6_K":
        high = quants[32 + 2 * block + i_half] >> (8 * byte + 2 * (word % 4)) & 3
        scale = signed(scales[block // 2], 2 * (block % 2) + i_half)
        return 4 * single(scales[4]) * scale * (q + 16 * (high - 4 * (high > 1)))
    low, low_min, high = (word >> 4 * block & 15 for word in scales[1:])
    return half(scales[0]) * (low + 16 * (high & 3)) * q - half(scales[0], 1) * (low_min + 16 * (high >> 2))


# of formats with grids, tests/gpu/test_embed.py compares what a shader reads from the planes with the values
@pytest.mark.parametrize("fmt", ["Q5_0", "Q5_1", "IQ4_NL", "MXFP4", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_planes_hold_the_values_that_gguf_reads(fmt: str) -> None:
    unit = weight_format(fmt).unit
    raw = random_raw(fmt, 1, 3 * unit // weight_format(fmt).block, 0)
    quants, scales = (plane.reshape(3, -1).tolist() for plane in split_planes(raw, fmt))
    got = [value_in_planes(fmt, quants[i // unit], scales[i // unit], i % unit // 32, i % 32) for i in range(3 * unit)]
    wanted = gguf.dequantize(raw, gguf.GGMLQuantizationType[fmt])
    assert np.allclose(got, wanted, rtol=1e-6, atol=1e-7)  # float64 against float32


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="Q8_K"):
        weight_format("Q8_K")


@pytest.mark.parametrize("seed", range(3))
def test_q16_blocks_keep_15_bits(seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 10.0**seed, (7, 96)).astype(np.float32)
    x[2, 32:64] = 0
    words, scales = quantize_q16(x)
    blocks, restored = x.reshape(-1, 32), dequantize_q16(words, scales)
    error = np.abs(restored.reshape(-1, 32) - blocks)
    assert (error <= np.abs(blocks).max(axis=1, keepdims=True) / 32512 * 0.501 + 1e-12).all()
    assert np.allclose(scales[..., 1], restored.reshape(7, 3, 32).sum(axis=2), rtol=1e-5, atol=1e-3)
    assert words[:, :2].copy().view(np.int8).min() >= -127, "the high bytes are symmetric, so none can overflow"
