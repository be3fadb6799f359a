"""matmul_narrow against numpy where there are cooperative matrices: formats, ragged sizes, what else it computes."""

import numpy as np
import numpy.typing as npt
import pytest
from kernel_case import filled, floats, nmse, planes, poisoned, step_buffer, words
from random_weights import quantized

from vkllm.formats.quants import dequantize, weight_format
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.fragments import DIRECT_LANES, FOUND_WORDS, MatrixLayout, holds_directly, most_words
from vkllm.gpu.program.kernels import ACTIVATIONS, KERNELS, WEIGHT_FORMATS
from vkllm.model.reference import activate

pytestmark = pytest.mark.gpu

NO_HEADS = (0, 1, 1, 8, 0, 0)

BOUND = 3e-7  # activations, scales and weights rounded to float16: each (2^-11)^2 / 3 at most

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def layout(device: Device) -> MatrixLayout:
    """Through shared memory."""
    if device.info.matrix_shape is None:
        pytest.skip("the device has no cooperative matrices")
    return MatrixLayout(device.info.narrow_shape or device.info.matrix_shape)


@pytest.fixture(scope="module")
def direct(device: Device, layout: MatrixLayout) -> MatrixLayout:
    """In registers."""
    for lanes in (DIRECT_LANES, layout.shape[2]):
        if holds_directly(device, layout.shape, lanes):
            return MatrixLayout(layout.shape, lanes, is_direct=True)
    pytest.skip("the device's matrices are in no order that is known")


def test_lanes_hold_every_element_once(device: Device, layout: MatrixLayout) -> None:
    (m, n, k), size = layout.shape, device.info.subgroup_size
    for of_tokens, n_rows in enumerate((m, n)):
        found = poisoned(device, FOUND_WORDS * size)
        source = filled(device, np.arange(n_rows * k).astype(np.float16))
        constants = (size, m, n, k, of_tokens)
        device.run([device.dispatch(KERNELS["matrix_layout"], (source, found), constants=constants)])
        held = words(found, (FOUND_WORDS * size,))
        assert sorted(held[held != 0xFFFFFFFF].tolist()) == list(range(n_rows * k))


def product(
    device: Device, layout: MatrixLayout, fmt: str, raw: npt.NDArray[np.uint8], x: Floats, n_rows: int, **chosen: float
) -> tuple[Floats, npt.NDArray[np.float16]]:
    """y (T, n_rows + 64), of which columns from 32 on are written, and the same in the order of fragments."""
    n_tokens, columns = x.shape
    values = dict(n_splits=4, steps_ahead=1, gates=0, activation=0, adds=0, has_bias=0) | {
        name: v for name, v in chosen.items() if name != "factor"
    }
    tiles = -(-n_tokens // layout.shape[1])
    stride = n_rows + 64
    rng = np.random.default_rng(n_rows)
    before, bias = rng.normal(0, 1, (n_tokens, stride)), rng.normal(0, 1, 2 * stride)
    y, halves = poisoned(device, n_tokens * stride), poisoned(device, most_words(stride))
    m, n, k = layout.shape
    constants = (
        *(device.info.subgroup_size * values["n_splits"] * (1 + values["gates"]), columns, values["n_splits"], tiles),
        *(m, n, k, layout.lanes, int(layout.is_direct), values["steps_ahead"]),
        *(values["adds"], values["has_bias"], float_bits(chosen.get("factor", 1)), values["gates"]),
        *(values["activation"], 1, 0, 0, 0, 0, *NO_HEADS),
    )
    device.run(
        [
            device.dispatch(
                KERNELS["matmul_narrow"],
                (
                    *planes(device, raw, fmt),
                    filled(device, layout.ordered(x)),
                    *(
                        filled(device, before.astype(np.float32)),
                        y,
                        step_buffer(device, range(n_tokens), [0] * n_tokens),
                    ),
                    *(filled(device, bias.astype(np.float32)), halves, *(6 * [y])),
                ),
                constants=constants,
                groups=(-(-n_rows // m), 1),
                push=(n_rows, 32, stride, n_tokens),
                weight_format=fmt,
            )
        ]
    )
    words = floats(halves, (most_words(stride),)).view(np.float16)
    return floats(y, (n_tokens, stride)), words


def matrix(fmt: str, n_rows: int, columns: int) -> tuple[npt.NDArray[np.uint8], Floats, int]:
    """A random matrix, its values, and its columns, of whole blocks."""
    columns = -(-columns // weight_format(fmt).block) * weight_format(fmt).block
    rng = np.random.default_rng(columns)
    raw = quantized(rng.normal(0, 0.05, (n_rows, columns)).astype(np.float32), fmt)
    return raw, dequantize(raw, fmt, (n_rows, columns)), columns


@pytest.mark.parametrize(("n_rows", "columns", "n_tokens"), [(16, 64, 1), (144, 576, 9), (64, 2048, 32)])
@pytest.mark.parametrize("fmt", WEIGHT_FORMATS)
def test_products(device: Device, layout: MatrixLayout, fmt: str, n_rows: int, columns: int, n_tokens: int) -> None:
    raw, values, columns = matrix(fmt, n_rows, columns)
    x = np.random.default_rng(n_tokens).normal(0, 1, (n_tokens, columns)).astype(np.float32)
    got, _ = product(device, layout, fmt, raw, x, n_rows)
    assert nmse(got[:, 32:-32], x.astype(np.float64) @ values.T) < BOUND
    assert np.isnan(got[:, :32]).all() and np.isnan(got[:, -32:]).all(), "wrote beyond its columns"


@pytest.mark.parametrize(
    ("fmt", "n_tokens", "steps_ahead"),
    [("F16", 3, 1), ("Q4_K", 8, 2), ("Q4_K", 19, 1), ("Q6_K", 8, 1), ("IQ4_XS", 3, 2)],
)
def test_products_in_registers(device: Device, direct: MatrixLayout, fmt: str, n_tokens: int, steps_ahead: int) -> None:
    raw, values, columns = matrix(fmt, 24, 32 * (2 * direct.lanes + 1))
    x = np.random.default_rng(1).normal(0, 1, (n_tokens, columns)).astype(np.float32)
    got, _ = product(device, direct, fmt, raw, x, 24, steps_ahead=steps_ahead)
    assert nmse(got[:, 32:-32], x.astype(np.float64) @ values.T) < BOUND


@pytest.mark.parametrize("steps_ahead", [1, 2])
@pytest.mark.parametrize("n_splits", [1, 8])
@pytest.mark.parametrize("activation", ["silu", "gelu", "swiglu_oai"])
def test_gates(device: Device, layout: MatrixLayout, activation: str, n_splits: int, steps_ahead: int) -> None:
    n_rows, n_tokens = 96, 11
    raw, values, columns = matrix("Q8_0", 2 * n_rows, 320)
    x = np.random.default_rng(0).normal(0, 1, (n_tokens, columns)).astype(np.float32)
    chosen = {"gates": 1, "activation": ACTIVATIONS.index(activation), "has_bias": 1, "n_splits": n_splits}
    got, halves = product(device, layout, "Q8_0", raw, x, n_rows, steps_ahead=steps_ahead, **chosen)
    bias = (
        np.random.default_rng(n_rows).normal(0, 1, (n_tokens + 2, n_rows + 64)).reshape(-1)[n_tokens * (n_rows + 64) :]
    )
    both = x.astype(np.float64) @ values.T + bias[32 : 32 + 2 * n_rows]
    wanted = activate(both.astype(np.float32), activation, True, 1)
    assert nmse(got[:, 32:-32], wanted) < BOUND
    written = np.concatenate([np.zeros((n_tokens, 32)), got[:, 32:-32], np.zeros((n_tokens, 32))], axis=1)
    is_written = layout.ordered((written != 0).astype(np.float32)) != 0
    np.testing.assert_array_equal(
        halves[: is_written.size][is_written], layout.ordered(written.astype(np.float32))[is_written]
    )


@pytest.mark.parametrize("factor", [1.0, -0.22])
def test_sums_biases_and_factors(device: Device, layout: MatrixLayout, factor: float) -> None:
    raw, values, columns = matrix("Q4_0", 48, 256)
    x = np.random.default_rng(0).normal(0, 1, (5, columns)).astype(np.float32)
    got, _ = product(device, layout, "Q4_0", raw, x, 48, adds=1, has_bias=1, factor=factor)
    rng = np.random.default_rng(48)
    before, bias = rng.normal(0, 1, (5, 48 + 64)), rng.normal(0, 1, 2 * (48 + 64))
    wanted = factor * (x.astype(np.float64) @ values.T + bias[32 : 32 + 48]) + before[:, 32:-32]
    assert nmse(got[:, 32:-32], wanted) < BOUND


@pytest.mark.parametrize("fmt", ["Q4_K", "BF16"])
def test_a_row_does_not_depend_on_its_neighbours(device: Device, layout: MatrixLayout, fmt: str) -> None:
    raw, _, columns = matrix(fmt, 64, 768)
    x = np.random.default_rng(2).normal(0, 1, (32, columns)).astype(np.float32)
    alone, _ = product(device, layout, fmt, raw, x[19:21], 64)
    among, _ = product(device, layout, fmt, raw, x, 64)
    np.testing.assert_array_equal(alone[:, 32:-32], among[19:21, 32:-32])


@pytest.mark.parametrize(("fmt", "n_tokens", "gates"), [("Q4_K", 8, 0), ("IQ4_XS", 19, 1), ("F16", 3, 1)])
def test_how_many_loads_are_under_way_does_not_show(
    device: Device, layout: MatrixLayout, fmt: str, n_tokens: int, gates: int
) -> None:
    check_steps_ahead(device, layout, fmt, n_tokens, gates)


@pytest.mark.parametrize(("fmt", "gates"), [("Q4_K", 0), ("Q6_K", 1), ("F16", 1)])
def test_nor_in_registers(device: Device, direct: MatrixLayout, fmt: str, gates: int) -> None:
    check_steps_ahead(device, direct, fmt, 8, gates)


def check_steps_ahead(device: Device, layout: MatrixLayout, fmt: str, n_tokens: int, gates: int) -> None:
    n_rows = 88  # no whole workgroups
    raw, _, columns = matrix(fmt, n_rows * (1 + gates), 32 * (2 * layout.lanes + 1))
    x = np.random.default_rng(3).normal(0, 1, (n_tokens, columns)).astype(np.float32)
    chosen = {"gates": gates, "activation": gates, "n_splits": 2}
    wanted, _ = product(device, layout, fmt, raw, x, n_rows, **chosen)
    for steps_ahead in (2, 4):
        got, _ = product(device, layout, fmt, raw, x, n_rows, steps_ahead=steps_ahead, **chosen)
        np.testing.assert_array_equal(got[:, 32:-32], wanted[:, 32:-32])
        assert np.isnan(got[:, :32]).all() and np.isnan(got[:, -32:]).all(), "wrote beyond its columns"
