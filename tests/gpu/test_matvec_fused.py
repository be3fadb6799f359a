"""matvec_fused against numpy: a norm or an activation inside the product, every quantized format."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, planes, poisoned
from random_weights import quantized

from vkllm.formats.quants import dequantize
from vkllm.gpu.device import Device
from vkllm.gpu.kernels import KERNELS, QUANTIZED_FORMATS
from vkllm.model.reference import rms_norm, swiglu

pytestmark = pytest.mark.gpu

BOUND = 4e-9  # activations are rounded to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


@pytest.mark.parametrize("has_integer_dot", [True, False], ids=["dot4", "soft"])
@pytest.mark.parametrize("takes_swiglu", [False, True], ids=["rms_norm", "swiglu"])
@pytest.mark.parametrize(("n_rows", "columns", "unroll"), [(5, 256, 1), (37, 768, 2), (130, 1536, 4)])
@pytest.mark.parametrize("fmt", QUANTIZED_FORMATS)
def test_matvec_fused(
    device: Device,
    fmt: str,
    n_rows: int,
    columns: int,
    unroll: int,
    takes_swiglu: bool,
    has_integer_dot: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if has_integer_dot and "integer_dot_product" not in device.info.features:
        pytest.skip("the device has no integer dot products")
    monkeypatch.setattr(device, "has_integer_dot", has_integer_dot)
    rng = np.random.default_rng(columns)
    raw = quantized(rng.normal(0, 0.05, (n_rows, columns)).astype(np.float32), fmt)
    source = rng.normal(0, 3, (1, 2 * columns if takes_swiglu else columns)).astype(np.float32)
    norm_weight, eps = rng.normal(1, 0.3, columns).astype(np.float32), np.float32(1e-5)
    before = rng.normal(0, 1, n_rows + 7).astype(np.float32)
    y = poisoned(device, n_rows + 7)
    rows_per_group = 2 * max(64 // device.info.subgroup_size, 1)
    buffers = (filled(device, source), filled(device, norm_weight), filled(device, before), y)
    device.run(
        [
            device.dispatch(
                KERNELS["matvec_fused"],
                (*planes(device, raw, fmt), *buffers),
                constants=(64, columns, 2, unroll, int(takes_swiglu), int(takes_swiglu), int(eps.view(np.uint32))),
                groups=(-(-n_rows // rows_per_group), 1),
                push=(n_rows, 3),
                weight_format=fmt,
            )
        ]
    )
    x = swiglu(source) if takes_swiglu else rms_norm(source, norm_weight, float(eps))
    wanted = dequantize(raw, fmt, (n_rows, columns)).astype(np.float64) @ x[0].astype(np.float64)
    got = floats(y, (n_rows + 7,))
    assert np.isnan(got[:3]).all() and np.isnan(got[3 + n_rows :]).all(), "wrote beyond its rows"
    assert nmse(got[3 : 3 + n_rows], wanted + (before[3 : 3 + n_rows] if takes_swiglu else 0)) < BOUND
