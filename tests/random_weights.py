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
    scales = np.concatenate([d, centre * d], axis=1) if centre else d
    first = SCALES_AT.get(fmt, 0)
    raw[:, first : first + 2 * scales.shape[1]] = scales.astype(np.float16).view(np.uint8)
    return raw.reshape(-1)
