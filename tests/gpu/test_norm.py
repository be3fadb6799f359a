"""norm against numpy: its forms, float32 output and q16 blocks or a sum, from any row on, and the rows of results."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, poisoned, step_buffer, words

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, NORM_FORMS, RESULT_ROWS
from vkllm.model.reference import layer_norm, norm, rms_norm

pytestmark = pytest.mark.gpu

BOUND = 1e-12  # float32 sums of squares: a few 1e-7, squared
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


@pytest.mark.parametrize(
    ("form", "has_weight", "has_bias", "adds"),
    [
        ("rms", True, False, False),
        ("rms", False, False, False),
        ("rms", True, False, True),
        ("layer", True, True, False),
        ("layer", True, False, True),
        ("none", False, False, False),
    ],
)
@pytest.mark.parametrize(
    ("n_rows", "columns", "first_row"),
    [(1, 32, 0), (1, 576, RESULT_ROWS), (3, 96, 2), (5, 4096, 0), (5, 4096, 1), (5, 4096, RESULT_ROWS)],
)
def test_norm(
    device: Device,
    n_rows: int,
    columns: int,
    first_row: int,
    form: str,
    has_weight: bool,
    has_bias: bool,
    adds: bool,
) -> None:
    rng = np.random.default_rng(columns)
    x = rng.normal(1, 3, (n_rows, columns)).astype(np.float32)
    x[0, : columns // 32] = 0
    weight, bias = (rng.normal(1, 0.3, columns).astype(np.float32) for _ in range(2))
    eps = np.float32(1e-5)
    positions = [0, 1, *range(5, 5 + n_rows)][:n_rows]  # of two parts, each with a result
    taken = x[[1, n_rows - 1] if n_rows > 1 else [0]] if first_row == RESULT_ROWS else x[first_row:]
    n_out = len(taken)
    before = rng.normal(0, 1, (n_rows, columns)).astype(np.float32)
    y = filled(device, before) if adds else poisoned(device, n_rows * columns)
    y_q16, y_scales = poisoned(device, n_rows * columns // 2), poisoned(device, n_rows * columns // 16)
    factors = poisoned(device, n_rows + 3)
    device.run(
        [
            device.dispatch(
                KERNELS["norm"],
                (
                    *(filled(device, x), filled(device, weight), filled(device, bias), y, y, y_q16, y_scales),
                    *(step_buffer(device, positions, [0] * n_rows, n_results=1), y, y, y, factors),
                ),
                constants=(
                    *(256, columns, float_bits(eps), NORM_FORMS.index(form)),
                    *(int(has_weight), int(has_bias), int(adds), int(not adds), 0, 0, float_bits(1.0), 0, 0, 0, 0),
                    *(1, 3),
                ),
                groups=(1, 4 if first_row == RESULT_ROWS else n_out),  # rows behind the last one are left out
                push=(first_row, 0, 0),
            )
        ]
    )
    used = weight if has_weight else 1.0
    if form == "none":
        wanted = taken
    else:
        wanted = rms_norm(taken, used, float(eps)) if form == "rms" else layer_norm(taken, used, float(eps))
    wanted = wanted + (bias if has_bias else 0) + (before[:n_out] if adds else 0)
    assert nmse(floats(y, (n_out, columns)), wanted) < BOUND
    if form == "rms":
        wanted_factors = 1 / np.sqrt(np.mean(np.square(taken, dtype=np.float64), axis=1) + eps)
        np.testing.assert_allclose(floats(factors, (n_out + 3,))[3:], wanted_factors, rtol=1e-5)
    if adds:
        return
    scales = floats(y_scales, (n_out, columns // 32, 2))
    restored = dequantize_q16(words(y_q16, (n_out, 4, columns // 32, 4)), scales)
    assert nmse(restored, wanted) < Q16_BOUND
    assert np.allclose(scales[..., 1], restored.reshape(n_out, -1, 32).sum(axis=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [0, 1])
def test_a_row_of_zeros_stays_zero(device: Device, form: int) -> None:
    y, y_q16, y_scales = (poisoned(device, n) for n in (64, 32, 4))
    x, weight = filled(device, np.zeros(64, np.float32)), filled(device, np.ones(64, np.float32))
    buffers = (x, weight, weight, x, y, y_q16, y_scales, step_buffer(device, [0], [0]), y, y, y, y)
    constants = (256, 64, float_bits(1e-5), form, 1, 0, 0, 1, 0, 0, float_bits(1.0), 0, 0, 0, 0, 0, 0)
    device.run([device.dispatch(KERNELS["norm"], buffers, constants=constants, push=(0, 0, 0))])
    assert not floats(y, (64,)).any() and not words(y_q16, (32,)).any() and not floats(y_scales, (4,)).any()


@pytest.mark.parametrize(
    ("columns", "group", "x_columns", "form", "adds", "quantizes"),
    [
        (672, 16, 0, "rms", True, False),
        (256, 64, 0, "rms", False, True),
        (96, 32, 0, "layer", False, True),
        (40, 20, 0, "layer", True, False),
        (32, 24, 0, "rms", False, True),
        (128, 120, 120, "none", False, True),
        (1568, 1544, 1544, "rms", False, False),
    ],
)
def test_groups_of_columns(
    device: Device, columns: int, group: int, x_columns: int, form: str, adds: bool, quantizes: bool
) -> None:
    n_rows, eps, factor, scale = 3, 1e-5, 0.6, 1.7
    rng = np.random.default_rng(group)
    x = rng.normal(1, 3, (n_rows, x_columns or columns)).astype(np.float32)
    weight, bias = (rng.normal(1, 0.3, group).astype(np.float32) for _ in range(2))
    added = rng.normal(0, 1, (n_rows, columns)).astype(np.float32)
    y, y_q16, y_scales = (poisoned(device, n_rows * n) for n in (columns, columns // 2, max(columns // 16, 1)))
    device.run(
        [
            device.dispatch(
                KERNELS["norm"],
                (
                    *(filled(device, array) for array in (x, weight, bias, added)),
                    *(y, y_q16, y_scales, step_buffer(device, range(n_rows), [0] * n_rows)),
                    *(filled(device, np.array([scale], np.float32)), y, y, y),
                ),
                constants=(
                    *(64, columns, float_bits(eps), NORM_FORMS.index(form), 1, 1, int(adds), int(quantizes)),
                    *(x_columns, group, float_bits(factor), 1, 0, 0, 0, 0, 0),
                ),
                groups=(columns // group, n_rows),
                push=(0, 0, 0),
            )
        ]
    )
    whole = columns // group * group
    groups = norm(form, x[:, :whole].reshape(n_rows, -1, group), weight, eps) if form != "none" else x * weight
    wanted = np.zeros((n_rows, columns), np.float32)
    wanted[:, :whole] = (groups + bias).reshape(n_rows, -1)
    wanted = np.float32(factor) * np.float32(scale) * (wanted + adds * added)
    assert nmse(floats(y, wanted.shape), wanted) < BOUND
    if not quantizes:
        assert (words(y_q16, (y_q16.n_words,)) == 0x7FC00000).all()
        return
    scales = floats(y_scales, (n_rows, columns // 32, 2))
    assert nmse(dequantize_q16(words(y_q16, (n_rows, 4, columns // 32, 4)), scales), wanted) < Q16_BOUND
