"""How fast a device multiplies matrices with vkllm's own kernels, measured in a fraction of a second.

The ceiling of a prompt's products: a square matrix and many tokens suit the kernels best. It is `matmul` on F16 weights
where the device has cooperative matrices, so nothing is unpacked; elsewhere `matvec` on Q4_0.
"""

from __future__ import annotations

import numpy as np

from vkllm.formats.quants import BLOCK, quantize_q16, weight_format
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.measure.timing import pass_s
from vkllm.gpu.program.buffers import Activation
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.gpu.program.operations import Operations
from vkllm.gpu.program.step import HEADER_WORDS
from vkllm.gpu.program.weights import Uploader, WeightPlanes

MATMUL_COLUMNS = 4096
MATVEC_COLUMNS = 2048
MATVEC_TOKENS = 64

HALF_BITS = 0x2C00
"""A 16th as float16, twice in each word of the scales."""


def product_rate(device: Device, operations: Operations, *, by_matrices: bool) -> float:
    """Operations a second of the largest product; a multiplication and an addition count as two.

    by_matrices: whether by cooperative matrices. Overwrites the step buffer. Raises DeviceError.
    """
    columns, n_tokens = (MATMUL_COLUMNS, MAX_ROWS) if by_matrices else (MATVEC_COLUMNS, MATVEC_TOKENS)
    random = np.random.default_rng(0)
    uploader = Uploader(device)
    fmt = weight_format("F16" if by_matrices else "Q4_0")
    n_quants, n_scales = fmt.plane_words(columns * columns)
    weights = random.normal(0, 0.02, columns * columns).astype(np.float16)
    planes = WeightPlanes(device.buffer(n_quants), device.buffer(n_scales), fmt.name, columns, columns)
    # any bytes are valid quants of Q4_0, and these are not all equal
    uploader.words(np.resize(weights.view(np.uint32), n_quants), planes.quants)
    uploader.words(np.full(n_scales, HALF_BITS << 16 | HALF_BITS, np.uint32), planes.scales)
    values = random.normal(0, 1, (n_tokens, columns)).astype(np.float32)
    x = Activation(device.buffer(values.size), device.buffer(values.size // 2), device.buffer(2 * values.size // BLOCK))
    y = device.buffer(values.size)
    assert x.q16 is not None and x.scales is not None
    q16, scales = quantize_q16(values)
    for words, buffer in ((values, x.values), (q16, x.q16), (scales, x.scales)):
        uploader.words(words, buffer)
    header = np.zeros(HEADER_WORDS, np.uint32)
    header[0] = n_tokens
    uploader.words(header, operations.step)
    uploader.finish()
    product = (
        operations.matmul(planes, x, y, n_tokens, columns)
        if by_matrices
        else operations.matvec(planes, x, y, n_tokens, columns)
    )
    return 2 * n_tokens * columns * columns / pass_s(device, [product])
