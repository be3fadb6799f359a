"""matmul_float against numpy in float64: ragged tiles, sums, biases, factors; all tiles give the same numbers."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, poisoned, step_buffer

from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS
from vkllm.gpu.program.matmul_tiles import FLOAT_SIZE, float_tile

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("adds", "has_bias", "factor"), [(False, False, 1.0), (True, True, -0.22)])
@pytest.mark.parametrize(("n_rows", "columns"), [(5, 128), (33, 640)])
def test_matmul_float(device: Device, n_rows: int, columns: int, adds: bool, has_bias: bool, factor: float) -> None:
    rng = np.random.default_rng(columns)
    w = rng.normal(0, 0.05, (n_rows, columns)).astype(np.float32)
    x = rng.normal(0, 1, (64, columns)).astype(np.float32)
    before = rng.normal(0, 1, (64, n_rows + 7)).astype(np.float32)
    bias = rng.normal(0, 1, n_rows + 7).astype(np.float32)
    results = []
    for width, n_tokens in ((8, 5), (16, 16), (32, 23), (64, 45)):
        lane_rows, lane_tokens = float_tile(width)
        y = poisoned(device, 64 * (n_rows + 7))
        bound = filled(device, w), filled(device, x), filled(device, before), y
        device.run(
            [
                device.dispatch(
                    KERNELS["matmul_float"],
                    (*bound, step_buffer(device, range(n_tokens), [0] * n_tokens), filled(device, bias)),
                    constants=(
                        *(FLOAT_SIZE, columns, lane_rows, lane_tokens, int(adds), int(has_bias), float_bits(factor)),
                    ),
                    groups=(-(-n_rows // (4 * lane_rows)), -(-width // (8 * lane_tokens))),
                    push=(n_rows, 3, n_rows + 7),
                )
            ]
        )
        got = floats(y, (64, n_rows + 7))
        assert np.isnan(got[n_tokens:]).all() and np.isnan(got[:, :3]).all() and np.isnan(got[:, 3 + n_rows :]).all()
        results.append(got[:n_tokens, 3 : 3 + n_rows])
    wanted = factor * (x.astype(np.float64) @ w.T.astype(np.float64) + (bias[3 : 3 + n_rows] if has_bias else 0))
    wanted += before[:, 3 : 3 + n_rows] if adds else 0
    assert nmse(results[-1], wanted[:45]) < 1e-13  # float32
    assert all(np.array_equal(result, results[-1][: len(result)]) for result in results)
