"""delta_net and delta_net_chunks against numpy: in one step, in several, with states kept on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from kernel_case import constants, filled, floats, nmse, poisoned
from state_case import FIRST_WORD, Slots, rows_of, step, team_constants

from vkllm.gpu.device.kernel import KernelSpec, float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.requirements import without_subgroups
from vkllm.gpu.program.kernels import KERNELS
from vkllm.gpu.program.state_decode import StateDecode
from vkllm.gpu.program.state_operations import chunk_constants
from vkllm.model.mixers import DeltaNet
from vkllm.model.reference_states import beta_and_alpha, convolution, delta_net, gated_norm

pytestmark = pytest.mark.gpu

BOUND = 1e-11  # float32 in another order: differences of some 1e-6, squared; states carry them from row to row
HALF_BOUND = (
    4e-6  # queries, keys and states rounded to float16: 2^-11.5 each, squared; a step of one row has few results
)

EPS = 0.02


def check(
    device: Device,
    kernel: KernelSpec,
    net: DeltaNet,
    sizes: dict[str, int],
    n_groups: int,
    *,
    is_fused: bool,
    bound: float,
    cuts: Sequence[int],
    middle: Callable[[int], int],
) -> None:
    """Runs a kernel on steps of so many rows each. middle: behind which row of a step its states are stored, too."""
    n_rows, n_heads = sum(cuts), net.n_v_heads
    rng = np.random.default_rng(net.head_dim + n_rows)
    qkv = rng.normal(0, 1, (n_rows, 2 * net.k_width + net.v_width)).astype(np.float32)
    gates = rng.normal(0, 2, (n_rows, 2 * n_heads + 3)).astype(np.float32)
    dt, a = rng.normal(0, 1, n_heads).astype(np.float32), -rng.uniform(0.01, 2, n_heads).astype(np.float32)
    beta, alpha = gates[:, 1 : 1 + n_heads], gates[:, 2 + n_heads : 2 + 2 * n_heads]
    if is_fused:
        beta, alpha = beta_and_alpha(net, gates[:, 1 : 1 + 2 * n_heads])
    slots = Slots(device, n_heads * net.head_dim**2)
    state = np.zeros((n_heads, net.head_dim, net.head_dim), np.float32)
    read, start = None, 0
    for number, n in enumerate(cuts):
        last, within = 2 - number % 2, middle(n)
        y = poisoned(device, (n + 1) * net.v_width)
        device.run(
            [
                device.dispatch(
                    kernel,
                    (
                        *(filled(device, rows_of(qkv, start, start + n, n + 1)), filled(device, gates[start:])),
                        *(filled(device, dt), filled(device, a), slots.buffer, y),
                        step(device, n, read, {within: 0, n - 1: last}),
                    ),
                    constants=constants(
                        kernel.name,
                        **sizes,
                        n_k_heads=net.n_k_heads,
                        n_v_heads=n_heads,
                        head_dim=net.head_dim,
                        is_grouped=net.are_heads_grouped,
                        gates_columns=gates.shape[1],
                        beta_column=1,
                        alpha_column=2 + n_heads,
                        has_fused_gates=is_fused,
                        eps=float_bits(EPS),
                        slot_words=slots.slot_words,
                    ),
                    groups=(n_groups, 1),
                    push=(FIRST_WORD,),
                )
            ]
        )
        end, before = start + n, state
        wanted, state = delta_net(net, EPS, qkv[start:end], beta[start:end], alpha[start:end], dt, a, before)
        got = floats(y, (n + 1, net.v_width))
        assert nmse(got[:n], wanted) < bound and np.isnan(got[n]).all()
        if within < n - 1:
            part = slice(start, start + within + 1)
            kept = delta_net(net, EPS, qkv[part], beta[part], alpha[part], dt, a, before)[1]
            assert nmse(slots[0].reshape(state.shape).swapaxes(1, 2), kept) < bound
        assert nmse(slots[last].reshape(state.shape).swapaxes(1, 2), state) < bound
        assert slots.is_clean_outside()
        read, start = last, end


@pytest.mark.parametrize("is_plain", [False, True], ids=["subgroups", "plain"])
@pytest.mark.parametrize(
    ("net", "is_fused"),
    [
        (DeltaNet(1, 1, 16, 4), False),
        (DeltaNet(2, 6, 32, 4), False),
        (DeltaNet(2, 4, 64, 4, are_heads_grouped=True), True),
        (DeltaNet(4, 8, 128, 4), True),
        (DeltaNet(3, 3, 24, 4), False),
    ],
    ids=str,
)
def test_token_by_token(
    device: Device, monkeypatch: pytest.MonkeyPatch, net: DeltaNet, is_fused: bool, is_plain: bool
) -> None:
    if is_plain:
        monkeypatch.setattr(device, "info", without_subgroups(device.info))
    sizes, n_groups = team_constants(device, net.v_width, net.head_dim)
    cuts = (1, 1, 37, 3)
    kernel = KERNELS["delta_net"]
    check(device, kernel, net, sizes, n_groups, is_fused=is_fused, bound=BOUND, cuts=cuts, middle=lambda n: n // 2)


NETS = [(DeltaNet(1, 2, 32, 4), False), (DeltaNet(2, 4, 32, 4, are_heads_grouped=True), True)]


@pytest.mark.parametrize(("net", "is_fused"), NETS, ids=str)
@pytest.mark.parametrize("cuts", [(1, 31, 64), (33, 101)], ids=str)
def test_in_chunks_by_loops(
    device: Device, monkeypatch: pytest.MonkeyPatch, net: DeltaNet, is_fused: bool, cuts: tuple[int, ...]
) -> None:
    monkeypatch.setattr(device, "info", without_subgroups(device.info))
    sizes = dict(local_size=64, columns=16)
    n_groups = net.v_width // 16

    def end_of_chunk(n: int) -> int:
        return max(n - 1, 0) // 64 * 64 - 1 if n > 64 else n - 1

    kernel = KERNELS["delta_net_chunks"]
    check(device, kernel, net, sizes, n_groups, is_fused=is_fused, bound=BOUND, cuts=cuts, middle=end_of_chunk)


@pytest.mark.parametrize(("net", "is_fused"), [*NETS, (DeltaNet(2, 6, 128, 4), False), (DeltaNet(2, 4, 64, 4), True)])
@pytest.mark.parametrize("cuts", [(1, 31, 64), (33, 101), (512,)], ids=str)
def test_in_chunks_by_cooperative_matrices(
    device: Device, net: DeltaNet, is_fused: bool, cuts: tuple[int, ...]
) -> None:
    sizes = chunk_constants(device.info, net)
    if sizes is None:
        pytest.skip("needs cooperative matrices")

    def end_of_chunk(n: int) -> int:
        return (n - 1) // 64 * 64 - 1 if n > 64 else n - 1

    n_groups, kernel = net.v_width // sizes["columns"], KERNELS["delta_net_chunks"]
    check(device, kernel, net, sizes, n_groups, is_fused=is_fused, bound=HALF_BOUND, cuts=cuts, middle=end_of_chunk)


@pytest.mark.parametrize(
    ("net", "is_fused"),
    [
        (DeltaNet(1, 1, 16, 4), False),
        (DeltaNet(2, 6, 32, 3), False),
        (DeltaNet(2, 4, 64, 4, are_heads_grouped=True), True),
        (DeltaNet(1, 3, 128, 4), False),
        (DeltaNet(3, 3, 24, 2), False),
    ],
    ids=str,
)
def test_fused_with_its_convolution_and_its_norm(device: Device, net: DeltaNet, is_fused: bool) -> None:
    if device.is_plain:
        pytest.skip("the kernel needs subgroups")
    rng = np.random.default_rng(net.head_dim)
    n_heads, convolved = net.n_v_heads, 2 * net.k_width + net.v_width
    n_before = (net.n_kernel - 1) * convolved
    state_word = -(-n_before // 16) * 16
    rows = rng.normal(0, 1, (3, convolved + net.v_width + 2 * n_heads)).astype(np.float32)
    weight = rng.normal(0, 1, (convolved, net.n_kernel)).astype(np.float32)
    norm_weight = rng.normal(1, 0.3, net.head_dim).astype(np.float32)
    dt, a = rng.normal(0, 1, n_heads).astype(np.float32), -rng.uniform(0.01, 2, n_heads).astype(np.float32)
    z, gates = rows[:, convolved : convolved + net.v_width], rows[:, convolved + net.v_width :]
    beta, alpha = beta_and_alpha(net, gates) if is_fused else (gates[:, :n_heads], gates[:, n_heads:])
    slot_words = state_word + n_heads * net.head_dim**2
    slots = poisoned(device, 2 * slot_words)
    size, lanes = StateDecode(device, None, slots, slots, slots, 0).sizes(net)  # type: ignore[arg-type]
    columns = np.zeros((net.n_kernel - 1, convolved), np.float32)
    state = np.zeros((n_heads, net.head_dim, net.head_dim), np.float32)
    for row in range(3):
        y, slot = poisoned(device, net.v_width), row % 2
        dispatch = device.dispatch(
            KERNELS["delta_net_fused"],
            (
                *(filled(device, rows[row]), filled(device, weight), slots, filled(device, dt), filled(device, a)),
                *(filled(device, norm_weight), y, step(device, 1, None if row == 0 else 1 - slot, {0: slot})),
                *(poisoned(device, 64), poisoned(device, 1)),
            ),
            constants=constants(
                "delta_net_fused",
                local_size=size,
                lanes=lanes,
                n_k_heads=net.n_k_heads,
                n_v_heads=n_heads,
                head_dim=net.head_dim,
                n_kernel=net.n_kernel,
                is_grouped=net.are_heads_grouped,
                z_column=convolved,
                beta_column=convolved + net.v_width,
                alpha_column=convolved + net.v_width + n_heads,
                has_fused_gates=is_fused,
                eps=float_bits(EPS),
                norm_eps=float_bits(1e-3),
                slot_words=slot_words,
                state_word=state_word,
            ),
            groups=(n_heads, 1),
            push=(0, 0),
        )
        device.run([dispatch])
        of_row = slice(row, row + 1)
        qkv, columns = convolution(rows[of_row, :convolved], weight, columns, function="silu")
        mixed, state = delta_net(net, EPS, qkv, beta[of_row], alpha[of_row], dt, a, state)
        assert nmse(floats(y, (1, net.v_width)), gated_norm(mixed, z[of_row], norm_weight, 1e-3)) < BOUND
        kept = floats(slots, (2, slot_words))[slot]
        assert np.allclose(kept[:n_before].reshape(columns.shape), columns, rtol=1e-6, atol=1e-7)
        assert nmse(kept[state_word:].reshape(state.shape).swapaxes(1, 2), state) < BOUND
