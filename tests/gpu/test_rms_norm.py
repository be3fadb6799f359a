"""rms_norm against numpy: float32 output and its q16 blocks, from any row on, and the last row alone."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, poisoned, step_buffer, words

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, LAST_ROW
from vkllm.model.reference import rms_norm

pytestmark = pytest.mark.gpu

BOUND = 1e-12  # float32 sums of squares: a few 1e-7, squared
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("n_rows", "columns", "first_row"),
    [(1, 32, 0), (1, 576, LAST_ROW), (3, 96, 0), (3, 96, 2), (5, 4096, 0), (5, 4096, 1), (5, 4096, LAST_ROW)],
)
def test_rms_norm(device: Device, n_rows: int, columns: int, first_row: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, (n_rows, columns)).astype(np.float32)
    x[0, : columns // 32] = 0
    weight = rng.normal(1, 0.3, columns).astype(np.float32)
    eps = np.float32(1e-5)
    taken = x[-1:] if first_row == LAST_ROW else x[first_row:]
    n_out = len(taken)
    y, y_q16 = poisoned(device, n_rows * columns), poisoned(device, n_rows * columns // 2)
    y_scales = poisoned(device, n_rows * columns // 16)
    device.run(
        [
            device.dispatch(
                KERNELS["rms_norm"],
                (
                    filled(device, x),
                    filled(device, weight),
                    y,
                    y_q16,
                    y_scales,
                    step_buffer(device, range(n_rows), [0] * n_rows),
                ),
                constants=(256, columns, int(eps.view(np.uint32))),
                groups=(1, n_out),
                push=(first_row,),
            )
        ]
    )
    wanted = rms_norm(taken, weight, float(eps))
    assert nmse(floats(y, (n_out, columns)), wanted) < BOUND
    scales = floats(y_scales, (n_out, columns // 32, 2))
    restored = dequantize_q16(words(y_q16, (n_out, 4, columns // 32, 4)), scales)
    assert nmse(restored, wanted) < Q16_BOUND
    assert np.allclose(scales[..., 1], restored.reshape(n_out, -1, 32).sum(axis=2), rtol=1e-4, atol=1e-4)


def test_a_row_of_zeros_stays_zero(device: Device) -> None:
    y, y_q16, y_scales = (poisoned(device, n) for n in (64, 32, 4))
    x, weight = filled(device, np.zeros(64, np.float32)), filled(device, np.ones(64, np.float32))
    step = step_buffer(device, [0], [0])
    constants = (256, 64, int(np.float32(1e-5).view(np.uint32)))
    device.run(
        [device.dispatch(KERNELS["rms_norm"], (x, weight, y, y_q16, y_scales, step), constants=constants, push=(0,))]
    )
    assert not floats(y, (64,)).any() and not words(y_q16, (32,)).any() and not floats(y_scales, (4,)).any()
