"""Block formats against the gguf package's own dequantization, planes, and q16 activations."""

import gguf
import numpy as np
import pytest
from random_weights import SUPERBLOCKS, quantized

from vkllm.errors import UnsupportedModel
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
    n_blocks = 100
    n_bytes = 4 * sum(weight_format(fmt).plane_words(n_blocks * weight_format(fmt).block))
    assert 1 <= n_bytes / (n_blocks * weight_format(fmt).block_bytes) < 1.01


@pytest.mark.parametrize("n_blocks", [1, 2, 5])
@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt not in SUPERBLOCKS])
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


def value_in_planes(fmt: str, quants: list[int], scales: list[int], block: int, i: int) -> float:
    """Value i of a block of a super-block, read from its planes as formats/superblocks.py describes them."""
    word, byte = i // 4, i % 4
    q = quants[4 * block + word % 4] >> (8 * byte + i // 16 * 4) & 15
    if fmt == "Q6_K":
        high = quants[32 + 2 * block + i // 16] >> (8 * byte + 2 * (word % 4)) & 3
        scale = np.array(scales, np.uint32).view(np.int8)[2 * block + i // 16]
        return 4 * float(np.uint32(scales[4]).view(np.float32)) * float(scale) * (q + 16 * (high - 4 * (high > 1)))
    if fmt == "Q5_K":
        q += (quants[32 + block] >> (8 * byte + word) & 1) << 4
    d, d_min = np.uint32(scales[0]).reshape(1).view(np.float16).astype(float)
    low, low_min, high = (word >> 4 * block & 15 for word in scales[1:])
    return d * (low + 16 * (high & 3)) * q - d_min * (low_min + 16 * (high >> 2))


@pytest.mark.parametrize("fmt", SUPERBLOCKS)
def test_planes_of_superblocks_hold_the_values_that_gguf_reads(fmt: str) -> None:
    raw = random_raw(fmt, 1, 3, 0)
    quants, scales = (plane.reshape(3, -1).tolist() for plane in split_planes(raw, fmt))
    got = [value_in_planes(fmt, quants[i // 256], scales[i // 256], i // 32 % 8, i % 32) for i in range(3 * 256)]
    wanted = gguf.dequantize(raw, gguf.GGMLQuantizationType[fmt])
    assert np.allclose(got, wanted, rtol=1e-6, atol=1e-7)  # float64 against float32


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="IQ4_XS"):
        weight_format("IQ4_XS")


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
