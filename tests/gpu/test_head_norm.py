"""head_norm against numpy: heads and whole rows, with no weight, one for all heads or each head's own; values stay."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, step_buffer

from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, NORM_FORMS
from vkllm.model.reference import norm

pytestmark = pytest.mark.gpu

BOUND = 1e-12  # float32 sums of squares: a few 1e-7, squared


@pytest.mark.parametrize("form", ["rms", "layer"])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "over", "weight"),
    [
        (8, 2, 128, "head", "shared"),
        (3, 1, 40, "head", "of each head"),
        (2, 2, 8, "head", "none"),
        (8, 2, 64, "row", "of each head"),
    ],
)
def test_head_norm(
    device: Device, n_heads: int, n_kv_heads: int, head_dim: int, over: str, weight: str, form: str
) -> None:
    n_rows, eps = 3, 1e-6
    rng = np.random.default_rng(head_dim)
    qkv = rng.normal(1, 2, (n_rows, n_heads + 2 * n_kv_heads, head_dim)).astype(np.float32)
    sections = np.split(qkv, [n_heads, n_heads + n_kv_heads], axis=1)
    weights = [rng.normal(1, 0.3, (n if weight == "of each head" else 1, head_dim)) for n in (n_heads, n_kv_heads)]
    weights = [np.ones(1) if weight == "none" else w.astype(np.float32) for w in weights]
    wanted = []
    for x, w in zip(sections, weights, strict=False):
        groups = x.reshape(n_rows, 1, -1) if over == "row" else x
        wanted.append(norm(form, groups, w.reshape(1, -1) if over == "row" else w, eps).reshape(x.shape))
    groups = (1, 1) if over == "row" else (n_heads, n_kv_heads)
    columns = [n * head_dim // n_groups for n, n_groups in zip((n_heads, n_kv_heads), groups, strict=True)]
    buffer = filled(device, qkv)
    dispatch = device.dispatch(
        KERNELS["head_norm"],
        (
            *(buffer, filled(device, np.concatenate([w.reshape(-1) for w in weights]).astype(np.float32))),
            step_buffer(device, range(n_rows), [0] * n_rows),
        ),
        constants=(
            *(64, qkv[0].size, groups[0], columns[0], groups[1], columns[1], float_bits(eps)),
            *(NORM_FORMS.index(form), int(weight != "none"), int(weight == "of each head"), columns[0], 0, 0),
        ),
        groups=(sum(groups), n_rows),
    )
    device.run([dispatch])
    assert nmse(floats(buffer, qkv.shape), np.concatenate([*wanted, sections[2]], axis=1)) < BOUND


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "form", "has_gates", "values"),
    [
        (4, 2, 64, "rms", True, "as they are"),
        (4, 0, 256, "rms", False, "as they are"),
        (3, 1, 40, "rms", False, "norm"),
        (8, 2, 128, "none", False, "norm"),
        (2, 2, 512, "rms", False, "keys"),
        (2, 0, 64, "rms", True, "as they are"),
    ],
)
def test_gates_and_values(
    device: Device, n_heads: int, n_kv_heads: int, head_dim: int, form: str, has_gates: bool, values: str
) -> None:
    n_rows, eps = 3, 1e-6
    rng = np.random.default_rng(head_dim)
    heads = rng.normal(1, 2, (n_rows, (1 + has_gates) * n_heads + 2 * n_kv_heads, head_dim)).astype(np.float32)
    weights = rng.normal(1, 0.3, (2, head_dim)).astype(np.float32)
    wanted, n_q = heads.copy(), (1 + has_gates) * n_heads
    queries, keys = slice(0, n_q, 1 + has_gates), slice(n_q, n_q + n_kv_heads)
    values_place = slice(n_q + n_kv_heads, None)
    if values != "as they are":
        wanted[:, values_place] = norm("rms", heads[:, keys if values == "keys" else values_place], 1.0, eps)
    for place, weight in zip((queries, keys), weights, strict=True):
        if form != "none":
            wanted[:, place] = norm(form, heads[:, place], weight, eps)
    buffer = filled(device, heads)
    n_v_groups = n_kv_heads if values == "norm" else 0
    dispatch = device.dispatch(
        KERNELS["head_norm"],
        (buffer, filled(device, weights), step_buffer(device, range(n_rows), [0] * n_rows)),
        constants=(
            *(64, heads[0].size, n_heads, head_dim, n_kv_heads, head_dim, float_bits(eps)),
            *(NORM_FORMS.index(form), int(form != "none"), 0, (1 + has_gates) * head_dim, n_v_groups, values == "keys"),
        ),
        groups=(n_heads + n_kv_heads + n_v_groups, n_rows),
    )
    device.run([dispatch])
    assert nmse(floats(buffer, heads.shape), wanted) < BOUND
