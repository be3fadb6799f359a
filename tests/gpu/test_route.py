"""route and expert_tiles against numpy: every way to choose experts, and the slots of all rows sorted by expert."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_case import filled, floats, poisoned, step_buffer, words

from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.expert_operations import most_tiles, routing_constants
from vkllm.gpu.program.kernels import KERNELS, LINK_WORDS
from vkllm.model.reference import rms_norm
from vkllm.model.reference_experts import chosen_experts, route
from vkllm.model.spec import Experts

pytestmark = pytest.mark.gpu

CASES = [
    Experts(3, 1, 32),
    Experts(8, 8, 32, gating="softmax_of_chosen"),
    Experts(128, 8, 32, is_normalized=True),
    Experts(100, 7, 32, gating="sigmoid", has_selection_bias=True, is_normalized=True, scale=2.5),
    Experts(32, 4, 32, gating="sigmoid", n_groups=8, n_groups_used=3, has_selection_bias=True),
    Experts(16, 2, 32, gating="sigmoid", chooses_by_logits=True, has_shared_gate=True, d_ff_shared=32),
    Experts(512, 10, 32, is_normalized=True, has_shared_gate=True, d_ff_shared=32),
]


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("experts", CASES, ids=str)
def test_route(device: Device, experts: Experts, n_tokens: int) -> None:
    rng = np.random.default_rng(experts.n_experts)
    n_columns, width = experts.n_experts + experts.has_shared_gate, 2 * experts.n_used + 1
    logits = rng.normal(0, 2, (n_tokens, n_columns)).astype(np.float32)
    logits[0, 1] = logits[0, 0]  # of equal ones the lower number comes first
    bias = rng.normal(0, 0.3, experts.n_experts).astype(np.float32) if experts.has_selection_bias else None
    got = chosen_routes(device, experts, logits, bias)
    wanted = route(logits, experts, bias)
    assert np.array_equal(got[:, : experts.n_used], chosen_experts(wanted, experts.n_used))
    weights = got[:, experts.n_used : width].view(np.float32)
    # exp may be off by 3 + 2 |x| units in the last place (Vulkan), of x up to 10 here
    assert np.allclose(weights, wanted[:, experts.n_used :], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("is_chained", [True, False], ids=["chained", "not chained"])
@pytest.mark.parametrize(("experts", "columns"), [(CASES[0], 96), (CASES[3], 2880), (CASES[5], 100)], ids=str)
def test_route_fused(device: Device, experts: Experts, columns: int, is_chained: bool) -> None:
    rng = np.random.default_rng(columns)
    n_rows, width = experts.n_experts + experts.has_shared_gate, 2 * experts.n_used + 1
    matrix = rng.normal(0, columns**-0.5, (n_rows, columns)).astype(np.float32)
    x, norm_weight = rng.normal(2, 3, (1, columns)).astype(np.float32), rng.normal(1, 0.3, columns).astype(np.float32)
    bias, selection_bias = rng.normal(0, 0.3, (2, n_rows)).astype(np.float32)
    chosen_by = selection_bias[: experts.n_experts] if experts.has_selection_bias else None
    routes, logits = poisoned(device, width), poisoned(device, n_rows)
    chain, failure = filled(device, np.zeros(4 * LINK_WORDS, np.uint32)), device.buffer(1, is_host=True)
    assert chain.words is not None
    chain.words[LINK_WORDS] = 2  # workgroups of link 0, before link 1, have ended
    n_groups = -(-n_rows // (64 // device.info.subgroup_size))
    device.run(
        [
            device.dispatch(
                KERNELS["route_fused"],
                (
                    *(filled(device, array) for array in (matrix, x, norm_weight, bias)),
                    *(logits, filled(device, selection_bias), routes, chain, failure),
                ),
                constants=(
                    *(64, *routing_constants(experts, has_bias=chosen_by is not None)),
                    *(columns, 1, float_bits(1e-5), float_bits(0.5), 1, 100 * is_chained),
                ),
                groups=(n_groups, 1),
                push=(2 * LINK_WORDS + 3, 1, 2),
                is_chained=is_chained,
            )
        ]
    )
    wanted_logits = 0.5 * rms_norm(x, norm_weight, 1e-5) @ matrix.T + bias
    assert np.allclose(floats(logits, (1, n_rows)), wanted_logits, rtol=1e-4, atol=1e-5)
    wanted = route(wanted_logits.astype(np.float32), experts, chosen_by)
    got = words(routes, (1, width))
    assert np.array_equal(got[:, : experts.n_used], chosen_experts(wanted, experts.n_used))
    assert np.allclose(got[:, experts.n_used :].view(np.float32), wanted[:, experts.n_used :], rtol=1e-4)
    ended = words(chain, (chain.n_words,))
    assert ended[2 * LINK_WORDS] == (n_groups if is_chained else 0) and ended[0] == words(failure, (1,))[0] == 0


def test_rows_that_are_no_numbers_take_experts_that_there_are(device: Device) -> None:
    experts = Experts(16, 4, 32)
    logits = np.full((1, 16), np.nan, np.float32)
    assert (chosen_routes(device, experts, logits, None)[:, :4] < 16).all()


@pytest.mark.parametrize(
    ("n_experts", "n_used", "n_tokens", "tile_size"), [(3, 1, 40, 16), (128, 8, 33, 2), (8, 2, 1, 32)]
)
def test_tiles(device: Device, n_experts: int, n_used: int, n_tokens: int, tile_size: int) -> None:
    rng = np.random.default_rng(n_tokens)
    share = rng.dirichlet(np.ones(n_experts) / 2 + 1e-6) + 1e-9
    numbers = np.stack([rng.choice(n_experts, n_used, replace=False, p=share / share.sum()) for _ in range(n_tokens)])
    routes = np.zeros((n_tokens, 2 * n_used + 1), np.uint32)
    routes[:, :n_used] = numbers
    n_tiles = most_tiles(n_tokens * n_used, n_experts, tile_size)
    tiles, entries = poisoned(device, 4 * n_tiles), poisoned(device, n_tokens * n_used)
    device.run(
        [
            device.dispatch(
                KERNELS["expert_tiles"],
                (filled(device, routes), tiles, entries, step_buffer(device, range(n_tokens), [0] * n_tokens)),
                constants=(64, n_experts, n_used, tile_size, n_tiles),
            )
        ]
    )
    slots = words(entries, (n_tokens * n_used,))
    assert sorted(slots) == list(range(n_tokens * n_used))
    seen = 0
    for expert, first, n, _ in words(tiles, (n_tiles, 4)).tolist():
        assert n <= tile_size
        assert all(numbers.reshape(-1)[slots[first : first + n]] == expert)
        seen += n
    assert seen == n_tokens * n_used


def chosen_routes(device: Device, experts: Experts, logits: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    n_tokens, width = len(logits), 2 * experts.n_used + 1
    routes, source = poisoned(device, n_tokens * width), filled(device, logits)
    device.run(
        [
            device.dispatch(
                KERNELS["route"],
                (
                    *(source, source if bias is None else filled(device, bias), routes),
                    step_buffer(device, range(n_tokens), [0] * n_tokens),
                ),
                constants=(64, *routing_constants(experts, has_bias=bias is not None)),
                groups=(1, n_tokens + 3),
            )
        ]
    )
    return words(routes, (n_tokens, width))
