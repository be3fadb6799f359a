"""activate against numpy: float32 output and its q16 blocks, with inputs far outside exp's comfortable range."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, poisoned, step_buffer, words

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import ACTIVATIONS, KERNELS
from vkllm.model.reference import activate

pytestmark = pytest.mark.gpu

BOUND = 1e-11  # exp on a GPU is good to a few units in the last place, relative to its argument
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", ""])
@pytest.mark.parametrize("function", ACTIVATIONS[1:])
@pytest.mark.parametrize(("n_rows", "columns"), [(1, 32), (3, 96), (9, 2080)])
def test_activate(device: Device, n_rows: int, columns: int, function: str, is_gated: bool) -> None:
    rng = np.random.default_rng(n_rows)
    x = rng.normal(0, 4, (n_rows, (1 + is_gated) * columns)).astype(np.float32)
    x[:, :4] = (-200, -90, 90, 200)
    y, y_q16 = poisoned(device, n_rows * columns), poisoned(device, n_rows * columns // 2)
    y_scales = poisoned(device, n_rows * columns // 16)
    device.run(
        [
            device.dispatch(
                KERNELS["activate"],
                (filled(device, x), y, y_q16, y_scales, step_buffer(device, range(n_rows), [0] * n_rows)),
                constants=(64, columns, ACTIVATIONS.index(function), int(is_gated)),
                groups=(-(-columns // 4 // 64), n_rows),
            )
        ]
    )
    wanted = activate(x, function, is_gated)
    assert nmse(floats(y, (n_rows, columns)), wanted) < BOUND
    n_blocks = columns // 32
    got = dequantize_q16(words(y_q16, (n_rows, 4, n_blocks, 4)), floats(y_scales, (n_rows, n_blocks, 2)))
    assert nmse(got, wanted) < Q16_BOUND
