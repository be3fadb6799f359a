"""Raw bytes of weights in any format, for tests of formats, kernels and programs."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt

from vkllm.formats.quants import weight_format

SPREADS = {
    "Q2_K": (13.8, 1.5),
    "Q3_K": (42.5, 0.0),
    "Q4_K": (258, 7.5),
    "Q5_K": (527, 15.5),
    "Q6_K": (1365, 0.0),
    "IQ4_NL": (67.5, 0.0),
    "IQ4_XS": (1246, 0.0),
    "NVFP4": (2.7, 0.0),
    "IQ1_S": (6.6, 0.0),
    "IQ1_M": (6.6, 0.0),
    "IQ2_XXS": (55, 0.0),
    "IQ2_XS": (55, 0.0),
    "IQ2_S": (55, 0.0),
    "IQ3_XXS": (150, 0.0),
    "IQ3_S": (160, 0.0),
}
"""Of random blocks: their standard deviation in units of d, and dmin / d for a mean of zero."""

SCALES_AT = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}
"""Where a block's float16 scales begin, if not at its first byte."""


def quantized(values: npt.NDArray[np.float32], fmt: str) -> npt.NDArray[np.uint8]:
    """The raw bytes of a tensor in a GGML format, by the gguf package's own quantization.

    That has none for some formats. Those get random bits, with scales that keep the spread of `values`.
    """
    if fmt in SPREADS:
        return _random_blocks(values, fmt)
    return np.ascontiguousarray(gguf.quantize(values, gguf.GGMLQuantizationType[fmt])).reshape(-1).view(np.uint8)


def _random_blocks(values: npt.NDArray[np.float32], fmt: str) -> npt.NDArray[np.uint8]:
    blocks = values.reshape(-1, weight_format(fmt).block)
    rng = np.random.default_rng(blocks[-1, -4:].copy().view(np.uint32))
    raw = rng.integers(0, 256, (len(blocks), weight_format(fmt).block_bytes), dtype=np.uint8)
    deviation, centre = SPREADS[fmt]
    d = blocks.std(axis=1, keepdims=True) / deviation
    if fmt == "NVFP4":  # floats of eight bits
        raw[:, :4] = gguf.quants.NVFP4.fp32_to_ue4m3(d * rng.uniform(0.5, 1.5, (len(blocks), 4)))
    elif fmt == "IQ1_M":  # four bits in each of four words
        words = np.ascontiguousarray(raw[:, 48:]).view(np.uint16) & 0xFFF
        words |= d.astype(np.float16).view(np.uint16) >> np.arange(0, 16, 4, dtype=np.uint16) << 12
        raw[:, 48:] = words.view(np.uint8)
    else:
        scales = np.concatenate([d, centre * d], axis=1) if centre else d
        first = SCALES_AT.get(fmt, 0)
        raw[:, first : first + 2 * scales.shape[1]] = scales.astype(np.float16).view(np.uint8)
    return raw.reshape(-1)
