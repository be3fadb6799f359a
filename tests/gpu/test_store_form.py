"""Activations as float16, which kernels store for matrices: the numbers that they store as float32, rounded."""

from collections.abc import Callable

import numpy as np
import pytest
from kernel_case import constants, filled, floats, poisoned, step_buffer, words

from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.fragments import MatrixLayout
from vkllm.gpu.program.kernels import ACTIVATIONS, KERNELS
from vkllm.gpu.program.stored_forms import FRAGMENTS, HALVES

pytestmark = pytest.mark.gpu

N_ROWS, COLUMNS = 3, 160


def norm(device: Device, x: Buffer, outputs: list[Buffer], step: Buffer, form: int = HALVES) -> None:
    values = dict(local_size=64, columns=COLUMNS, eps=float_bits(1e-5), factor=float_bits(1.0), quantizes=form)
    bound = (x, x, x, x, *outputs, step, x, x, x, x)
    device.run(
        [device.dispatch(KERNELS["norm"], bound, constants=constants("norm", **values), groups=(1, 3), push=(0, 0, 0))]
    )


def activate(device: Device, x: Buffer, outputs: list[Buffer], step: Buffer, form: int = HALVES) -> None:
    values = dict(local_size=64, columns=COLUMNS, activation=ACTIVATIONS.index("silu"), slots=1, quantizes=form)
    bound = (x, *outputs, step, x)
    device.run(
        [device.dispatch(KERNELS["activate"], bound, constants=constants("activate", **values), groups=(1, N_ROWS))]
    )


def gated_norm(device: Device, x: Buffer, outputs: list[Buffer], step: Buffer, form: int = HALVES) -> None:
    values = dict(local_size=64, columns=COLUMNS, group=32, span=32, gates_columns=COLUMNS, quantizes=form)
    bound, given = (x, x, x, x, *outputs, step), constants("gated_norm", eps=float_bits(1e-5), **values)
    device.run([device.dispatch(KERNELS["gated_norm"], bound, constants=given, groups=(5, N_ROWS), push=(0,))])


@pytest.mark.parametrize("kernel", [norm, activate, gated_norm])
def test_float16_in_the_order_of_rows(device: Device, kernel: Callable[..., None]) -> None:
    x = np.random.default_rng(5).normal(0, 3, (N_ROWS, COLUMNS)).astype(np.float32)
    outputs = [poisoned(device, N_ROWS * COLUMNS // part) for part in (1, 2, 16)]
    kernel(device, filled(device, x), outputs, step_buffer(device, range(N_ROWS), [0] * N_ROWS))
    y, halves, scales = outputs
    wanted = floats(y, (N_ROWS, COLUMNS)).astype(np.float16)
    assert np.isfinite(wanted).all() and np.abs(wanted).max() > 1
    assert np.array_equal(words(halves, (N_ROWS * COLUMNS // 2,)).view(np.float16).reshape(wanted.shape), wanted)
    assert np.isnan(floats(scales, (N_ROWS * COLUMNS // 16,))).all()


@pytest.mark.parametrize("kernel", [norm, activate, gated_norm])
def test_float16_in_the_order_of_fragments(device: Device, kernel: Callable[..., None]) -> None:
    layout = MatrixLayout((16, 8, 16), 4, True)
    x = np.random.default_rng(6).normal(0, 3, (N_ROWS, COLUMNS)).astype(np.float32)
    outputs = [poisoned(device, N_ROWS * COLUMNS), poisoned(device, 1024), poisoned(device, N_ROWS * COLUMNS // 16)]
    step = step_buffer(device, range(N_ROWS), [0] * N_ROWS)
    kernel(device, filled(device, x), outputs, step, FRAGMENTS | layout.packed << 8)
    values = floats(outputs[0], (N_ROWS, COLUMNS))
    found, wanted = words(outputs[1], (1024,)).view(np.float16), layout.ordered(values)
    # the last block has three beside it that must be zeros
    is_row = layout.ordered(np.concatenate([np.ones((N_ROWS, 256)), np.zeros((5, 256))]).astype(np.float32)) == 1
    assert wanted.size == found.size == 2048 and np.count_nonzero(wanted) > 400
    np.testing.assert_array_equal(found[is_row], wanted[is_row])
