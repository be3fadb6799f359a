"""convolution, mamba2 and gated norms against numpy: in one step, in several, with states kept on the way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from kernel_case import constants, filled, floats, nmse, poisoned, words
from state_case import FIRST_WORD, Slots, rows_of, step, team_constants

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.requirements import without_subgroups
from vkllm.gpu.program.kernels import KERNELS
from vkllm.gpu.program.state_operations import norm_span, part_span
from vkllm.model.mixers import Mamba2
from vkllm.model.reference_states import (
    convolution,
    gated_convolution,
    gated_norm,
    gated_squares,
    mamba2,
)

pytestmark = pytest.mark.gpu

BOUND = 1e-11  # float32 in another order: differences of some 1e-6, squared; states carry them from row to row
Q16_BOUND = 4e-9  # see test_norm.py

Floats = npt.NDArray[np.float32]


@pytest.fixture(params=["subgroups", "plain"])
def either(request: pytest.FixtureRequest, device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device as it is, and as one without subgroups."""
    if request.param == "plain":
        monkeypatch.setattr(device, "info", without_subgroups(device.info))
    return device


CUTS = (1, 1, 37, 3)
"""Steps of a sequence, by their numbers of rows."""


@pytest.mark.parametrize(
    ("columns", "n_kernel", "form"),
    [(160, 4, "bias"), (64, 3, "gated"), (32, 4, "gated"), (96, 2, "none"), (44, 4, "silu")],
)
def test_convolution(either: Device, columns: int, n_kernel: int, form: str) -> None:
    device, n_rows = either, sum(CUTS)
    rng = np.random.default_rng(columns + n_rows)
    first_column, n_parts = (0, 3) if form == "gated" else (4 if form == "silu" else 5, 1)
    x_columns = first_column + n_parts * columns + n_kernel
    x = rng.normal(0, 1, (n_rows, x_columns)).astype(np.float32)
    weight = rng.normal(0, 1, (columns, n_kernel)).astype(np.float32)
    bias = rng.normal(0, 1, columns).astype(np.float32) if form == "bias" else None
    taken = x[:, first_column : first_column + n_parts * columns]

    def wanted(rows: Floats, state: Floats) -> tuple[Floats, Floats]:
        if form == "gated":
            return gated_convolution(rows, weight, state)
        return convolution(rows, weight, state, bias, "none" if form == "none" else "silu")

    slots = Slots(device, (n_kernel - 1) * columns)
    is_quantized = columns % 32 == 0
    state = np.zeros((n_kernel - 1, columns), np.float32)
    read, start = None, 0
    for number, n in enumerate(CUTS):
        last = 2 - number % 2
        keeps = {n // 2: 0, n - 1: last} if n > 2 else {n - 1: last}
        y = poisoned(device, (n + 1) * columns)
        y_q16, y_scales = poisoned(device, n * columns // 2), poisoned(device, max(n * columns // 16, 4))
        device.run(
            [
                device.dispatch(
                    KERNELS["convolution"],
                    (
                        *(filled(device, rows_of(x, start, start + n, n + 1)), filled(device, weight)),
                        filled(device, weight if bias is None else bias),
                        *(slots.buffer, y, y_q16, y_scales, step(device, n, read, keeps)),
                    ),
                    constants=constants(
                        "convolution",
                        local_size=64,
                        columns=columns,
                        x_columns=x_columns,
                        n_kernel=n_kernel,
                        has_silu=form in ("silu", "bias"),
                        is_gated=form == "gated",
                        has_bias=bias is not None,
                        slot_words=slots.slot_words,
                        quantizes=is_quantized,
                    ),
                    groups=(-(-columns // 4 // 64), n + 1),
                    push=(first_column, FIRST_WORD),
                )
            ]
        )
        wanted_y, after = wanted(taken[start : start + n], state)
        got = floats(y, (n + 1, columns))
        assert nmse(got[:n], wanted_y) < BOUND and np.isnan(got[n]).all()
        if is_quantized:
            scales = floats(y_scales, (n, columns // 32, 2))
            assert nmse(dequantize_q16(words(y_q16, (n, 4, columns // 32, 4)), scales), wanted_y) < Q16_BOUND
        if n > 2:
            middle = wanted(taken[start : start + n // 2 + 1], state)[1]
            assert np.allclose(slots[0].reshape(middle.shape), middle, rtol=1e-6, atol=1e-7)
        assert np.allclose(slots[last].reshape(after.shape), after, rtol=1e-6, atol=1e-7)
        assert slots.is_clean_outside()
        state, read, start = after, last, start + n


@pytest.mark.parametrize(
    "mamba",
    [Mamba2(1, 16, 16, 1, 4), Mamba2(6, 32, 16, 2, 4), Mamba2(4, 64, 128, 1, 4), Mamba2(8, 8, 64, 8, 4)],
    ids=str,
)
def test_mamba2(either: Device, mamba: Mamba2) -> None:
    device, n_rows, n_heads = either, sum(CUTS), mamba.n_heads
    rng = np.random.default_rng(mamba.d_state + n_rows)
    xbc = rng.normal(0, 1, (n_rows, mamba.convolved)).astype(np.float32)
    gates = rng.normal(0, 2, (n_rows, n_heads + 3)).astype(np.float32)
    dt_bias, d = (rng.normal(0, 1, n_heads).astype(np.float32) for _ in range(2))
    a = -rng.uniform(0.01, 2, n_heads).astype(np.float32)
    dt = gates[:, 2 : 2 + n_heads]
    slots = Slots(device, mamba.d_inner * mamba.d_state)
    state = np.zeros((n_heads, mamba.head_dim, mamba.d_state), np.float32)
    sizes, n_groups = team_constants(device, mamba.d_inner, mamba.d_state)
    read, start = None, 0
    for number, n in enumerate(CUTS):
        last = 2 - number % 2
        y = poisoned(device, (n + 1) * mamba.d_inner)
        device.run(
            [
                device.dispatch(
                    KERNELS["mamba2"],
                    (
                        *(filled(device, rows_of(xbc, start, start + n, n + 1)), filled(device, gates[start:])),
                        *(filled(device, dt_bias), filled(device, a), filled(device, d), slots.buffer, y),
                        step(device, n, read, {n // 2: 0, n - 1: last} if n > 2 else {n - 1: last}),
                    ),
                    constants=constants(
                        "mamba2",
                        **sizes,
                        n_heads=n_heads,
                        head_dim=mamba.head_dim,
                        d_state=mamba.d_state,
                        n_groups=mamba.n_groups,
                        gates_columns=gates.shape[1],
                        dt_column=2,
                        slot_words=slots.slot_words,
                    ),
                    groups=(n_groups, 1),
                    push=(FIRST_WORD,),
                )
            ]
        )
        end, before = start + n, state
        wanted, state = mamba2(mamba, xbc[start:end], dt[start:end], dt_bias, a, d, before)
        got = floats(y, (n + 1, mamba.d_inner))
        assert nmse(got[:n], wanted) < BOUND and np.isnan(got[n]).all()
        if n > 2:
            half = slice(start, start + n // 2 + 1)
            middle = mamba2(mamba, xbc[half], dt[half], dt_bias, a, d, before)[1]
            assert nmse(slots[0].reshape(state.shape), middle) < BOUND
        assert nmse(slots[last].reshape(state.shape), state) < BOUND and slots.is_clean_outside()
        read, start = last, end


@pytest.mark.parametrize(
    ("n_rows", "columns", "group", "has_weight_per_group", "is_gated_first"),
    [
        (1, 64, 16, False, False),
        (3, 384, 128, False, False),
        (2, 4096, 1024, True, True),
        (3, 480, 80, True, True),
        (2, 72, 24, False, False),
        (2, 120, 20, True, True),
    ],
)
def test_gated_norm(
    either: Device, n_rows: int, columns: int, group: int, has_weight_per_group: bool, is_gated_first: bool
) -> None:
    device, eps, span, is_quantized = either, 0.02, norm_span(group, columns), columns % 32 == 0
    rng = np.random.default_rng(columns)
    x = rng.normal(0, 1, (n_rows, columns)).astype(np.float32)
    gates = rng.normal(0, 2, (n_rows, columns + 7)).astype(np.float32)
    weight = rng.normal(1, 0.3, (columns // group if has_weight_per_group else 1, group)).astype(np.float32)
    y = poisoned(device, (n_rows + 1) * columns)
    y_q16, y_scales = poisoned(device, n_rows * columns // 2), poisoned(device, n_rows * columns // 16)
    device.run(
        [
            device.dispatch(
                KERNELS["gated_norm"],
                (
                    *(filled(device, x), filled(device, gates), filled(device, weight), filled(device, x)),
                    *(y, y_q16, y_scales, step(device, n_rows, None, {})),
                ),
                constants=constants(
                    "gated_norm",
                    local_size=64,
                    columns=columns,
                    group=group,
                    span=span,
                    gates_columns=columns + 7,
                    eps=float_bits(eps),
                    is_gated_first=is_gated_first,
                    has_weight_per_group=has_weight_per_group,
                    quantizes=int(is_quantized),
                ),
                groups=(columns // span, n_rows + 1),
                push=(5,),
            )
        ]
    )
    z, used = gates[:, 5 : 5 + columns], weight if has_weight_per_group else weight[0]
    wanted = gated_norm(x, z, used, eps, is_gated_first=is_gated_first)
    got = floats(y, (n_rows + 1, columns))
    assert nmse(got[:n_rows], wanted) < BOUND and np.isnan(got[n_rows]).all()
    if is_quantized:
        scales = floats(y_scales, (n_rows, columns // 32, 2))
        assert nmse(dequantize_q16(words(y_q16, (n_rows, 4, columns // 32, 4)), scales), wanted) < Q16_BOUND


@pytest.mark.parametrize("parts", [(2048, 1056, 992), (96, 32)], ids=str)
def test_parts_of_a_group_are_normed_together(either: Device, parts: tuple[int, ...]) -> None:
    """Each part's squares, then each part by the sum of all."""
    device, n_rows, eps, columns = either, 3, 0.02, sum(parts)
    rng = np.random.default_rng(columns)
    x = rng.normal(0, 1, (n_rows, columns)).astype(np.float32)
    z = rng.normal(0, 2, (n_rows, columns)).astype(np.float32)
    weight = rng.normal(1, 0.3, (1, columns)).astype(np.float32)
    total, normed, first = np.zeros((n_rows, 4), np.float32), [], 0
    row_step = step(device, n_rows, None, {})
    owns = []
    for n in parts:
        own = slice(first, first + n)
        gates = np.concatenate(
            [np.zeros((n_rows, 5), np.float32), z[:, own], np.zeros((n_rows, 2), np.float32)], axis=1
        )
        owns.append((filled(device, x[:, own]), filled(device, gates), filled(device, weight[:, own]), n))
        squares = poisoned(device, 4 * (n_rows + 1))
        values = constants("gated_squares", local_size=64, columns=n, gates_columns=n + 7)
        bound = (*owns[-1][:2], squares, row_step)
        device.run(
            [device.dispatch(KERNELS["gated_squares"], bound, constants=values, groups=(1, n_rows + 1), push=(5,))]
        )
        got = floats(squares, (n_rows + 1, 4))
        assert nmse(got[:n_rows], gated_squares(x[:, own], z[:, own])) < BOUND and np.isnan(got[n_rows]).all()
        total, first = total + got[:n_rows], first + n
    for own_x, own_gates, own_weight, n in owns:
        y, y_q16, y_scales = (poisoned(device, n_rows * n // part) for part in (1, 2, 16))
        values = constants(
            "gated_norm",
            local_size=64,
            columns=n,
            group=n,
            span=part_span(n),
            gates_columns=n + 7,
            eps=float_bits(eps),
            is_gated_first=True,
            has_weight_per_group=True,
            normed_columns=columns,
            quantizes=1,
        )
        bound = (own_x, own_gates, own_weight, filled(device, total), y, y_q16, y_scales, row_step)
        groups = (n // part_span(n), n_rows + 1)
        device.run([device.dispatch(KERNELS["gated_norm"], bound, constants=values, groups=groups, push=(5,))])
        normed.append(floats(y, (n_rows, n)))
        quantized = dequantize_q16(words(y_q16, (n_rows, 4, n // 32, 4)), floats(y_scales, (n_rows, n // 32, 2)))
        assert nmse(quantized, normed[-1]) < Q16_BOUND
    wanted = gated_norm(x, z, weight, eps, is_gated_first=True)
    assert nmse(np.concatenate(normed, axis=1), wanted) < BOUND
