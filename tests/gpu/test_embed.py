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
    [(32, [(0, 50)], 1.0), (96, [(0, 8), (8, 16), (16, 50)], 24.0), (576, [(0, 50)], 1.0), (44, [(0, 50)], 1.0)],
    ids=["whole", "parts, scaled", "wide", "padded"],
)
@pytest.mark.parametrize("fmt", WEIGHT_FORMATS)
def test_embed(device: Device, fmt: str, columns: int, parts: list[tuple[int, int]], scale: float) -> None:
    block, n_columns = weight_format(fmt).block, columns
    columns = -(-columns // max(block, 32)) * max(block, 32)
    n_columns = n_columns if n_columns % 32 else columns
    rng = np.random.default_rng(columns)
    raw = quantized(rng.normal(0, 1, (50, columns)).astype(np.float32), fmt)
    tokens = [49, 0, 7, 7]
    x = poisoned(device, len(tokens) * n_columns)
    step = step_buffer(device, range(len(tokens)), tokens)
    row_bytes = len(raw.reshape(-1)) // 50
    device.run(
        device.dispatch(
            KERNELS["embed"],
            (*planes(device, raw.reshape(-1)[first * row_bytes : last * row_bytes], fmt), x, step),
            constants=(64, n_columns, float_bits(scale), columns // 32),
            groups=(1, len(tokens)),
            push=(first, last - first),
            weight_format=fmt,
        )
        for first, last in parts
    )
    wanted = scale * dequantize(raw, fmt, (50, columns))[tokens, :n_columns]
    # a fused multiply-add may round d * q + m once where numpy rounds twice
    assert np.allclose(floats(x, wanted.shape), wanted, rtol=1e-6, atol=1e-7)


def test_all_scales_of_mxfp4(device: Device) -> None:
    raw = np.tile(np.arange(-1, 16).astype(np.uint8) * np.uint8(17), (256, 1))  # all values, behind the scale
    raw[:, 0] = np.arange(256)
    x, step = poisoned(device, 256 * 32), step_buffer(device, range(256), range(256))
    device.run(
        [
            device.dispatch(
                KERNELS["embed"],
                (*planes(device, raw.reshape(-1), "MXFP4"), x, step),
                constants=(64, 32, float_bits(1.0), 1),
                groups=(1, 256),
                push=(0, 256),
                weight_format="MXFP4",
            )
        ]
    )
    with np.errstate(over="ignore"):
        wanted = dequantize(raw, "MXFP4", (256, 32))
    # a device may take what is not normalized for 0
    assert np.allclose(floats(x, wanted.shape), wanted, rtol=0, atol=2.0**-126)
