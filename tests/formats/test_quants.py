"""Block formats against the gguf package's own dequantization, planes, and q16 activations."""

import gguf
import numpy as np
import pytest

from vkllm.errors import UnsupportedModel
from vkllm.formats.quants import FORMATS, dequantize, dequantize_q16, quantize_q16, split_planes, weight_format


def random_raw(fmt: str, n_rows: int, n_columns: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 1, (n_rows, n_columns)).astype(np.float32)
    values[0, :32] = 0  # a block of zeros has a scale of zero
    return np.ascontiguousarray(gguf.quantize(values, gguf.GGMLQuantizationType[fmt])).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fmt", FORMATS)
def test_dequantization_equals_that_of_gguf(fmt: str, seed: int) -> None:
    raw = random_raw(fmt, 5, 96, seed)
    kind = gguf.GGMLQuantizationType[fmt]
    element = {"F32": np.float32, "F16": np.float16}.get(fmt, np.uint8)
    wanted = gguf.dequantize(raw.view(element).reshape(5, -1), kind).astype(np.float32)
    assert np.array_equal(dequantize(raw, fmt, (5, 96)), wanted)


@pytest.mark.parametrize("fmt", FORMATS)
def test_sizes_are_those_of_gguf(fmt: str) -> None:
    block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[fmt]]
    assert weight_format(fmt).block_bytes * block == 32 * n_bytes


@pytest.mark.parametrize("n_blocks", [1, 2, 5])
@pytest.mark.parametrize("fmt", FORMATS)
def test_planes_hold_every_byte_of_the_blocks(fmt: str, n_blocks: int) -> None:
    raw = random_raw(fmt, 1, 32 * n_blocks, 0)
    quants, scales = split_planes(raw, fmt)
    assert (len(quants), len(scales)) == weight_format(fmt).plane_words(n_blocks)
    scale_bytes = weight_format(fmt).block_bytes - 4 * weight_format(fmt).quant_words
    joined = np.concatenate(
        [
            scales.view(np.uint8)[: n_blocks * scale_bytes].reshape(n_blocks, -1),
            quants.view(np.uint8).reshape(n_blocks, -1),
        ],
        axis=1,
    )
    assert np.array_equal(joined.reshape(-1), raw)


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
