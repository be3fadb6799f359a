"""matmul against numpy on devices with cooperative matrices: every format, ragged tiles, with and without a sum."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, planes, poisoned, step_buffer
from random_weights import quantized

from vkllm.formats.quants import dequantize, weight_format
from vkllm.gpu.device import Device
from vkllm.gpu.kernels import KERNELS, MATMUL_TILE_ROWS, WEIGHT_FORMATS
from vkllm.gpu.operations import matmul_subgroups

pytestmark = pytest.mark.gpu

BOUND = 3e-7  # both factors rounded to float16: 2 * (2^-11)^2 / 3


@pytest.mark.parametrize("tile_tokens", [64, 128])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("n_rows", "columns", "n_tokens"), [(16, 64, 1), (144, 576, 70), (256, 4096, 200)])
@pytest.mark.parametrize("fmt", WEIGHT_FORMATS)
def test_matmul(
    device: Device, fmt: str, n_rows: int, columns: int, n_tokens: int, adds: bool, tile_tokens: int
) -> None:
    shape = device.info.matrix_shape
    if shape is None:
        pytest.skip("the device has no cooperative matrices")
    if MATMUL_TILE_ROWS * 144 + tile_tokens * 144 > device.info.max_shared_bytes:
        pytest.skip("the device has no room for so wide a tile")
    block = weight_format(fmt).block
    columns = -(-columns // block) * block
    rng = np.random.default_rng(n_tokens)
    raw = quantized(rng.normal(0, 0.05, (n_rows, columns)).astype(np.float32), fmt)
    padded = -(-n_tokens // tile_tokens) * tile_tokens
    x = rng.normal(0, 1, (padded, columns)).astype(np.float32)
    before = rng.normal(0, 1, (padded, n_rows + 32)).astype(np.float32)
    y, add = poisoned(device, padded * (n_rows + 32)), filled(device, before)
    step = step_buffer(device, range(n_tokens), [0] * n_tokens)
    device.run(
        [
            device.dispatch(
                KERNELS["matmul"],
                (*planes(device, raw, fmt), filled(device, x), add, y, step),
                constants=(256, columns, tile_tokens, *matmul_subgroups(device.info.subgroup_size), int(adds), *shape),
                groups=(-(-n_rows // MATMUL_TILE_ROWS), padded // tile_tokens),
                push=(n_rows, 16, n_rows + 32),
                weight_format=fmt,
            )
        ]
    )
    wanted = x[:n_tokens].astype(np.float64) @ dequantize(raw, fmt, (n_rows, columns)).T.astype(np.float64)
    got = floats(y, (padded, n_rows + 32))
    assert np.isnan(got[:, :16]).all() and np.isnan(got[:, 16 + n_rows :]).all(), "wrote beyond its columns"
    assert nmse(got[:n_tokens, 16 : 16 + n_rows], wanted + (before[:n_tokens, 16 : 16 + n_rows] if adds else 0)) < BOUND
