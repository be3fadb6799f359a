"""Raw bytes of weights in any format, for tests of formats, kernels and programs."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt

from vkllm.formats.quants import weight_format

SUPERBLOCKS = {"Q4_K": (258, 7.5), "Q5_K": (527, 15.5), "Q6_K": (1365, 0.0)}
"""Of each K format: the standard deviation that random blocks have in units of d, and dmin / d for a mean of zero."""


def quantized(values: npt.NDArray[np.float32], fmt: str) -> npt.NDArray[np.uint8]:
    """The raw bytes of a tensor in a GGML format, by the gguf package's own quantization.

    That has none for the K formats. Those get random bits, with scales that keep the spread of `values`.
    """
    if fmt in SUPERBLOCKS:
        return _random_superblocks(values, fmt)
    return np.ascontiguousarray(gguf.quantize(values, gguf.GGMLQuantizationType[fmt])).reshape(-1).view(np.uint8)


def _random_superblocks(values: npt.NDArray[np.float32], fmt: str) -> npt.NDArray[np.uint8]:
    blocks = values.reshape(-1, 256)
    rng = np.random.default_rng(blocks[-1, -4:].copy().view(np.uint32))
    raw = rng.integers(0, 256, (len(blocks), weight_format(fmt).block_bytes), dtype=np.uint8)
    deviation, centre = SUPERBLOCKS[fmt]
    d = blocks.std(axis=1, keepdims=True) / deviation
    if fmt == "Q6_K":
        raw[:, 208:] = d.astype(np.float16).view(np.uint8)
    else:
        raw[:, :4] = np.concatenate([d, centre * d], axis=1).astype(np.float16).view(np.uint8)
    return raw.reshape(-1)
