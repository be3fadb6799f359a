"""move_rows: the rows of a step to and from its place in host memory, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_case import filled, floats, poisoned, step_buffer

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, MAX_ROWS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("slot", [0, 2])
def test_rows_go_there_and_back(device: Device, slot: int) -> None:
    n_rows, columns = 3, 70
    x = np.random.default_rng(slot).normal(0, 1, (n_rows + 1, columns)).astype(np.float32)
    host, moved, step = (
        poisoned(device, 3 * MAX_ROWS * columns),
        poisoned(device, x.size),
        step_buffer(device, range(3), [0] * 3),
    )
    assert step.words is not None
    step.words[4] = slot  # step_slot of shaders/lib/step.glsl
    for is_sent, activation in ((1, filled(device, x)), (0, moved)):
        made = device.dispatch(
            KERNELS["move_rows"], (activation, host, step), constants=(32, columns, is_sent), groups=(2, n_rows + 1)
        )
        device.run([made])
    for found in (floats(host, (3, MAX_ROWS, columns))[slot], floats(moved, x.shape)):
        np.testing.assert_array_equal(found[:n_rows], x[:n_rows])
        assert np.isnan(found[n_rows:]).all()
    assert np.isnan(floats(host, (3, MAX_ROWS, columns))[1]).all(), "another step's place"
