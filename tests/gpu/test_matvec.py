"""matvec against numpy: every format, ragged shapes, several tokens, with and without a sum, a bias and a factor."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_case import filled, floats, planes, poisoned, step_buffer
from random_weights import quantized

from vkllm.formats.quants import dequantize, quantize_q16, weight_format
from vkllm.gpu.device.kernel import QUANTIZED_FORMATS, float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, WEIGHT_FORMATS

pytestmark = pytest.mark.gpu

# Activations are rounded to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12 = 3e-9.
# Plain int8 activations would give 1e-4, and an error in one weight of 1000 gives 1e-3.
BOUND = 4e-9

# columns are rounded up to a format's blocks
SHAPES = [(1, 32), (7, 96), (33, 288), (64, 576), (130, 1536)]

# Of several tokens one for all tests, which share kernels: more blocks than lanes, and no whole multiple of them.
SEVERAL = (33, 1568)


def run(
    device: Device,
    fmt: str,
    shape: tuple[int, int],
    n_tokens: int,
    seed: int,
    *,
    adds: bool,
    tile: int,
    factor: float = 1.0,
    has_bias: bool = False,
) -> float:
    block = weight_format(fmt).block
    shape = shape[0], -(-shape[1] // block) * block
    rng = np.random.default_rng(seed)
    raw = quantized(rng.normal(0, 0.05, shape).astype(np.float32), fmt)
    x = rng.normal(0, 1, (n_tokens, shape[1])).astype(np.float32) * rng.choice([0.01, 1, 30], (n_tokens, 1))
    x = x.astype(np.float32)
    before = rng.normal(0, 1, (n_tokens, shape[0])).astype(np.float32)
    weights = dequantize(raw, fmt, shape).T.astype(np.float64)
    bias = rng.normal(0, 1, shape[0] + 3).astype(np.float32)
    products = x.astype(np.float64) @ weights + (bias[3:] if has_bias else 0)
    wanted = factor * products + (before if adds else 0)

    is_quantized = weight_format(fmt).is_quantized
    x_words, x_scales = quantize_q16(x) if is_quantized else (x, x)
    y, offset, stride = poisoned(device, n_tokens * (shape[0] + 5)), 3, shape[0] + 5
    add = poisoned(device, n_tokens * stride)
    assert add.words is not None
    add.words.view(np.float32).reshape(n_tokens, stride)[:, offset : offset + shape[0]] = before
    rows_per_group = 2 * max(64 // device.info.subgroup_size, 1)
    dispatch = device.dispatch(
        KERNELS["matvec"],
        (
            *planes(device, raw, fmt),
            filled(device, x_words),
            filled(device, x_scales),
            add,
            y,
            step_buffer(device, range(n_tokens), [0] * n_tokens),
            filled(device, bias),
        ),
        constants=(64, shape[1], 2, tile, int(adds), int(has_bias), float_bits(factor)),
        groups=(-(-shape[0] // rows_per_group), -(-n_tokens // tile)),
        push=(shape[0], offset, stride),
        weight_format=fmt,
    )
    device.run([dispatch])
    got = floats(y, (n_tokens, stride))
    assert np.isnan(got[:, :offset]).all() and np.isnan(got[:, offset + shape[0] :]).all(), "wrote beyond its columns"
    # errors against the terms of a sum rather than the sum, which may be near zero
    terms = np.square(x.astype(np.float64)) @ np.square(weights) * factor**2
    return float(np.mean(np.square(got[:, offset : offset + shape[0]] - wanted)) / np.mean(terms))


@pytest.mark.some(3)
@pytest.mark.parametrize(("seed", "shape"), list(enumerate(SHAPES)), ids=str)
@pytest.mark.parametrize("fmt", WEIGHT_FORMATS)
def test_one_token(device: Device, fmt: str, shape: tuple[int, int], seed: int) -> None:
    assert run(device, fmt, shape, 1, seed, adds=seed % 2 == 1, tile=1) < BOUND


@pytest.mark.parametrize("n_tokens", [5, 11])
@pytest.mark.parametrize("fmt", WEIGHT_FORMATS)
def test_a_tile_of_tokens(device: Device, fmt: str, n_tokens: int) -> None:
    assert run(device, fmt, SEVERAL, n_tokens, n_tokens, adds=True, tile=8 if fmt in ("F32", "Q4_0") else 3) < BOUND


@pytest.mark.parametrize(("factor", "has_bias", "adds"), [(1.0, True, False), (-0.22, False, True), (3.0, True, True)])
@pytest.mark.parametrize("fmt", ["F32", "Q4_0"])
def test_a_bias_and_a_factor(device: Device, fmt: str, factor: float, has_bias: bool, adds: bool) -> None:
    assert run(device, fmt, (33, 96), 3, 5, adds=adds, tile=2, factor=factor, has_bias=has_bias) < BOUND


@pytest.mark.parametrize("fmt", QUANTIZED_FORMATS)
@pytest.mark.parametrize("has_integer_dot", [True, False], ids=["dot4", "soft"])
def test_with_and_without_integer_dot_products(
    device: Device, has_integer_dot: bool, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_integer_dot and "integer_dot_product" not in device.info.features:
        pytest.skip("the device has no integer dot products")
    monkeypatch.setattr(device, "has_integer_dot", has_integer_dot)
    assert run(device, fmt, SEVERAL, 3, 0, adds=True, tile=3) < BOUND
