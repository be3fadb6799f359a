"""matmul against numpy on devices with cooperative matrices: every format, ragged tiles, sums, biases and factors."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, planes, poisoned, step_buffer
from random_weights import quantized

from vkllm.formats.quants import dequantize, weight_format
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, WEIGHT_FORMATS
from vkllm.gpu.program.matmul_tiles import column_parts, matmul_bytes, matmul_subgroups, matmul_tile

pytestmark = pytest.mark.gpu

BOUND = 3e-7  # both factors rounded to float16: 2 * (2^-11)^2 / 3


@pytest.mark.parametrize(
    ("tile_rows", "tile_tokens", "steps_ahead"),
    [(32, 16, 1), (32, 32, 2), (64, 64, 1), (64, 16, 4), (128, 32, 1), (128, 64, 2), (128, 128, 1), (128, 128, 2)],
)
@pytest.mark.parametrize(("adds", "has_bias", "factor"), [(False, False, 1.0), (True, True, 1.0), (True, True, -0.22)])
@pytest.mark.parametrize(("n_rows", "columns", "n_tokens"), [(16, 64, 1), (144, 576, 70), (256, 4096, 200)])
@pytest.mark.parametrize("fmt", WEIGHT_FORMATS)
def test_matmul(
    device: Device,
    fmt: str,
    n_rows: int,
    columns: int,
    n_tokens: int,
    adds: bool,
    has_bias: bool,
    factor: float,
    tile_rows: int,
    tile_tokens: int,
    steps_ahead: int,
) -> None:
    shape = device.info.matrix_shape
    if shape is None:
        pytest.skip("the device has no cooperative matrices")
    if matmul_bytes(tile_rows, tile_tokens) > device.info.max_shared_bytes:
        pytest.skip("the device has no room for so wide a tile")
    block = max(weight_format(fmt).block, 32 * 256 // tile_rows)
    columns = -(-columns // block) * block
    rng = np.random.default_rng(n_tokens)
    raw = quantized(rng.normal(0, 0.05, (n_rows, columns)).astype(np.float32), fmt)
    padded = -(-n_tokens // tile_tokens) * tile_tokens
    x = rng.normal(0, 1, (padded, columns)).astype(np.float32)
    before = rng.normal(0, 1, (padded, n_rows + 32)).astype(np.float32)
    bias = rng.normal(0, 1, n_rows + 16).astype(np.float32)
    y, add = poisoned(device, padded * (n_rows + 32)), filled(device, before)
    step = step_buffer(device, range(n_tokens), [0] * n_tokens)
    device.run(
        [
            device.dispatch(
                KERNELS["matmul"],
                (*planes(device, raw, fmt), filled(device, x), add, y, step, filled(device, bias)),
                constants=(
                    *(256, columns, tile_tokens),
                    *matmul_subgroups(tile_rows, tile_tokens, 256 // device.info.subgroup_size, shape),
                    *(int(adds), *shape, tile_rows, steps_ahead, int(has_bias), float_bits(factor), 1, 0),
                ),
                groups=(-(-n_rows // tile_rows), padded // tile_tokens),
                push=(n_rows, 16, n_rows + 32),
                weight_format=fmt,
            )
        ]
    )
    wanted = x[:n_tokens].astype(np.float64) @ dequantize(raw, fmt, (n_rows, columns)).T.astype(np.float64)
    wanted = factor * (wanted + (bias[16:] if has_bias else 0))
    got = floats(y, (padded, n_rows + 32))
    assert np.isnan(got[:, :16]).all() and np.isnan(got[:, 16 + n_rows :]).all(), "wrote beyond its columns"
    assert nmse(got[:n_tokens, 16 : 16 + n_rows], wanted + (before[:n_tokens, 16 : 16 + n_rows] if adds else 0)) < BOUND


@pytest.mark.parametrize(
    ("tile_rows", "tile_tokens", "steps_ahead", "n_parts"), [(32, 16, 4, 3), (128, 64, 2, 6), (128, 128, 1, 2)]
)
@pytest.mark.parametrize(("adds", "has_bias", "factor"), [(False, False, 1.0), (True, True, -0.22)])
@pytest.mark.parametrize("fmt", ["F32", "Q4_K", "Q6_K"])
def test_a_product_in_parts_of_its_columns(
    device: Device,
    fmt: str,
    adds: bool,
    has_bias: bool,
    factor: float,
    tile_rows: int,
    tile_tokens: int,
    steps_ahead: int,
    n_parts: int,
) -> None:
    shape, n_rows, columns, n_tokens = device.info.matrix_shape, 144, 768, 20
    if shape is None:
        pytest.skip("the device has no cooperative matrices")
    if matmul_bytes(tile_rows, tile_tokens) > device.info.max_shared_bytes:
        pytest.skip("the device has no room for so wide a tile")
    rng = np.random.default_rng(n_parts)
    raw = quantized(rng.normal(0, 0.05, (n_rows, columns)).astype(np.float32), fmt)
    padded = -(-n_tokens // tile_tokens) * tile_tokens
    x = rng.normal(0, 1, (padded, columns)).astype(np.float32)
    before = rng.normal(0, 1, (padded, n_rows + 32)).astype(np.float32)
    bias = rng.normal(0, 1, n_rows + 16).astype(np.float32)
    y, add, biases = poisoned(device, padded * (n_rows + 32)), filled(device, before), filled(device, bias)
    step, parts = step_buffer(device, range(n_tokens), [0] * n_tokens), poisoned(device, n_parts * padded * n_rows)
    device.run(
        [
            device.dispatch(
                KERNELS["matmul"],
                (*planes(device, raw, fmt), filled(device, x), parts, parts, step, parts),
                constants=(
                    *(256, columns, tile_tokens),
                    *matmul_subgroups(tile_rows, tile_tokens, 256 // device.info.subgroup_size, shape),
                    *(0, *shape, tile_rows, steps_ahead, 0, float_bits(1.0), n_parts, 0),
                ),
                groups=(-(-n_rows // tile_rows), n_parts * padded // tile_tokens),
                push=(n_rows, 0, n_rows),
                weight_format=fmt,
            ),
            device.dispatch(
                KERNELS["sum_parts"],
                (parts, add, y, step, biases),
                constants=(64, n_parts, int(adds), int(has_bias), float_bits(factor)),
                groups=(-(-n_rows // 64), n_tokens),
                push=(n_rows, 16, n_rows + 32, padded),
            ),
        ]
    )
    wanted = x[:n_tokens].astype(np.float64) @ dequantize(raw, fmt, (n_rows, columns)).T.astype(np.float64)
    wanted = factor * (wanted + (bias[16:] if has_bias else 0))
    got = floats(y, (padded, n_rows + 32))
    assert np.isnan(got[:, :16]).all() and np.isnan(got[:, 16 + n_rows :]).all(), "wrote beyond its columns"
    assert nmse(got[:n_tokens, 16 : 16 + n_rows], wanted + (before[:n_tokens, 16 : 16 + n_rows] if adds else 0)) < BOUND


@pytest.mark.parametrize("fmt", ["F32", "Q4_K"])
def test_float16_activations_and_small_workgroups_give_the_very_same_products(device: Device, fmt: str) -> None:
    shape, n_rows, columns, n_tokens = device.info.matrix_shape, 112, 256, 100
    if shape is None:
        pytest.skip("the device has no cooperative matrices")
    rng = np.random.default_rng(1)
    weights = planes(device, quantized(rng.normal(0, 0.05, (n_rows, columns)).astype(np.float32), fmt), fmt)
    x = rng.normal(0, 1, (128, columns)).astype(np.float32)
    step = step_buffer(device, range(n_tokens), [0] * n_tokens)
    products = []
    for source, size in ((x, 256), (x.astype(np.float16), 256), (x, 128), (x.astype(np.float16), 128)):
        y, given = poisoned(device, 128 * n_rows), filled(device, source)
        subgroups = matmul_subgroups(128, 128, size // device.info.subgroup_size, shape)
        of_x = (1, int(source.dtype == np.float16))
        dispatch = device.dispatch(
            KERNELS["matmul"],
            (*weights, given, given, y, step, given),
            constants=(size, columns, 128, *subgroups, 0, *shape, 128, 2, 0, float_bits(1.0), *of_x),
            groups=(1, 1),
            push=(n_rows, 0, n_rows),
            weight_format=fmt,
        )
        device.run([dispatch])
        products.append(floats(y, (n_tokens, n_rows)))
    assert np.isfinite(products[0]).all() and all(np.array_equal(product, products[0]) for product in products)


def test_columns_are_cut_where_tiles_leave_cores_idle() -> None:
    assert column_parts(28672, 4096, 132, 256) == column_parts(4096, 4096, 132, 256) == 1  # 896 and 128 tiles
    assert column_parts(5120, 17408, 132, 256) == 4  # 160 tiles take two rounds, 640 parts 5 of a quarter
    assert column_parts(2048, 4096, 132, 256) == 2  # 64 tiles
    assert column_parts(96, 5120, 132, 256) == 20  # 4 tiles
    assert column_parts(5120, 17408, 12, 256) == 1  # a small GPU is busy
    assert column_parts(5120, 17408, None, 256) == 1
    assert column_parts(5120, 4096 + 64, 132, 256) == 1
    # two smaller workgroups on a core: on an H200 4096 x 14336 took 440 us whole, 280 in 2 parts, 287 in 4
    assert column_parts(4096, 14336, 132, 128) == column_parts(4096, 4096, 132, 128) == 2
    assert column_parts(28672, 4096, 132, 128) == column_parts(5120, 2048, 132, 128) == 1
    assert column_parts(5120, 17408, 132, 128) == 4


@pytest.mark.parametrize(
    ("width", "columns", "shared_bytes", "wanted"),
    [
        (8, 4096, 49152, (32, 16)),
        (64, 4096, 49152, (64, 64)),  # 32 rows and 64 tokens of 256 columns are 50 KB
        (8, 4096 + 128, 49152, (64, 16)),
        (8, 4096 + 64, 49152, (128, 32)),
        (512, 4096, 49152, (128, 128)),
        (512, 4096, 32768, (128, 64)),
    ],
)
def test_matmul_tile(width: int, columns: int, shared_bytes: int, wanted: tuple[int, int]) -> None:
    tile_rows, tile_tokens = matmul_tile(32, width, columns, shared_bytes)
    assert (tile_rows, tile_tokens) == wanted
    assert columns % (8192 // tile_rows) == 0 and matmul_bytes(tile_rows, tile_tokens) <= shared_bytes
    assert matmul_tile(128, width, columns, 49152)[0] == 128
