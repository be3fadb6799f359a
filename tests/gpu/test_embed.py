"""embed against numpy: every format, exactly."""

import numpy as np
import pytest
from kernel_case import floats, planes, poisoned, step_buffer
from random_weights import quantized

from vkllm.formats.quants import dequantize, weight_format
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, WEIGHT_FORMATS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("columns", "parts", "scale"),
    [(32, [(0, 50)], 1.0), (96, [(0, 8), (8, 16), (16, 50)], 24.0), (576, [(0, 50)], 1.0)],
    ids=["whole", "parts, scaled", "wide"],
)
@pytest.mark.parametrize("fmt", WEIGHT_FORMATS)
def test_embed(device: Device, fmt: str, columns: int, parts: list[tuple[int, int]], scale: float) -> None:
    block = weight_format(fmt).block
    columns = -(-columns // block) * block
    rng = np.random.default_rng(columns)
    raw = quantized(rng.normal(0, 1, (50, columns)).astype(np.float32), fmt)
    tokens = [49, 0, 7, 7]
    x = poisoned(device, len(tokens) * columns)
    step = step_buffer(device, range(len(tokens)), tokens)
    row_bytes = len(raw.reshape(-1)) // 50
    device.run(
        device.dispatch(
            KERNELS["embed"],
            (*planes(device, raw.reshape(-1)[first * row_bytes : last * row_bytes], fmt), x, step),
            constants=(64, columns, float_bits(scale)),
            groups=(1, len(tokens)),
            push=(first, last - first),
            weight_format=fmt,
        )
        for first, last in parts
    )
    wanted = scale * dequantize(raw, fmt, (50, columns))[tokens]
    # a fused multiply-add may round d * q + m once where numpy rounds twice
    assert np.allclose(floats(x, wanted.shape), wanted, rtol=1e-6, atol=1e-7)
