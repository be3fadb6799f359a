"""activate against numpy: float32 output and its q16 blocks, with inputs far outside exp's comfortable range."""

import numpy as np
import numpy.typing as npt
import pytest
from kernel_case import filled, floats, nmse, poisoned, step_buffer, words

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import ACTIVATIONS, KERNELS
from vkllm.model.reference import activate

pytestmark = pytest.mark.gpu

Floats = npt.NDArray[np.float32]

BOUND = 1e-11  # exp on a GPU is good to a few units in the last place, relative to its argument
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


def check(
    device: Device,
    x: Floats,
    function: str,
    *,
    is_gated: bool,
    slots: int = 1,
    up: Floats | None = None,
    up_column: int = 0,
) -> None:
    """Against numpy. up (T, columns): what is multiplied by, from up_column on; 0 behind its end."""
    n_rows, columns = len(x), x.shape[1] // (1 + is_gated)
    y, y_q16 = poisoned(device, n_rows * columns), poisoned(device, n_rows * columns // 2)
    y_scales = poisoned(device, n_rows * columns // 16)
    device.run(
        [
            device.dispatch(
                KERNELS["activate"],
                (
                    *(filled(device, x), y, y_q16, y_scales, step_buffer(device, range(n_rows), [0] * n_rows)),
                    y if up is None else filled(device, up),
                ),
                constants=(
                    *(64, columns, ACTIVATIONS.index(function), int(is_gated), slots),
                    *(0 if up is None else up.shape[1], up_column, 1),
                ),
                groups=(-(-columns // 4 // 64), n_rows),
            )
        ]
    )
    wanted = activate(x, function, is_gated, slots)
    if up is not None:
        factors = up[:, up_column : up_column + columns]
        wanted = wanted * np.pad(factors, ((0, 0), (0, columns - factors.shape[1])))
    assert nmse(floats(y, (n_rows, columns)), wanted) < BOUND
    n_blocks = columns // 32
    got = dequantize_q16(words(y_q16, (n_rows, 4, n_blocks, 4)), floats(y_scales, (n_rows, n_blocks, 2)))
    assert nmse(got, wanted) < Q16_BOUND


@pytest.mark.parametrize(
    ("function", "is_gated"),
    [(name, gated) for name in ACTIVATIONS[1:] for gated in (True, False) if gated or name != "swiglu_oai"],
)
@pytest.mark.parametrize(("n_rows", "columns"), [(1, 32), (3, 96), (9, 2080)])
def test_activate(device: Device, n_rows: int, columns: int, function: str, is_gated: bool) -> None:
    rng = np.random.default_rng(n_rows)
    x = rng.normal(0, 4, (n_rows, (1 + is_gated) * columns)).astype(np.float32)
    x[:, :4] = (-200, -90, 90, 200)
    check(device, x, function, is_gated=is_gated)


@pytest.mark.parametrize(("slots", "columns"), [(4, 32), (3, 96), (2, 352)])
@pytest.mark.parametrize("function", ["silu", "swiglu_oai", "relu2"])
def test_groups_of_columns_are_activated_one_by_one(device: Device, slots: int, columns: int, function: str) -> None:
    is_gated = function != "relu2"
    x = np.random.default_rng(slots).normal(0, 4, (3, slots * (1 + is_gated) * columns)).astype(np.float32)
    check(device, x, function, is_gated=is_gated, slots=slots)


@pytest.mark.parametrize(("columns", "up_columns", "up_column"), [(256, 768, 256), (32, 48, 0), (32, 48, 32)])
def test_another_activation_has_the_factors(device: Device, columns: int, up_columns: int, up_column: int) -> None:
    rng = np.random.default_rng(up_column)
    x, up = (rng.normal(0, 3, (3, n)).astype(np.float32) for n in (columns, up_columns))
    check(device, x, "gelu", is_gated=False, up=up, up_column=up_column)
