"""Plans of the ranks of a divided model: each needs memory for its own part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vkllm.errors import OutOfDeviceMemory
from vkllm.formats.gguf import TensorInfo
from vkllm.formats.quants import weight_format
from vkllm.model.architectures.llama import llama_spec
from vkllm.model.graph import expected_shapes
from vkllm.model.memory.limits import DeviceLimits, Tier
from vkllm.model.memory.plan import MemoryPlan, PlanOptions, plan
from vkllm.model.shards.rank_model import RankModel, rank_models

GIB = 2**30
LLAMA_70B = llama_spec(
    n_layers=80, n_heads=64, n_kv_heads=8, head_dim=128, d_model=8192, d_ff=28672, n_vocab=32000, n_ctx_train=4096,
)  # fmt: skip
LLAMA_70B = replace(LLAMA_70B, output_weight="output.weight")


def _table() -> dict[str, TensorInfo]:
    """As Q4_K_M: some matrices in Q6_K."""
    found = {}
    for name, shape in expected_shapes(LLAMA_70B).items():
        is_large = name == "output.weight" or ("ffn_down" in name and int(name.split(".")[1]) % 2)
        fmt = "F32" if len(shape) == 1 else "Q6_K" if is_large else "Q4_K"
        n_bytes = shape[0] * shape[-1] * weight_format(fmt).block_bytes // weight_format(fmt).block
        found[name] = TensorInfo(name, shape, fmt, 0, n_bytes if len(shape) > 1 else 4 * shape[0])
    return found


TENSORS = _table()


def card(gib: int) -> DeviceLimits:
    return DeviceLimits(memory_bytes=gib * GIB, max_binding_bytes=2**32 - 4, spill_bytes=64 * GIB)


def made(model: RankModel, gib: int, ram_limit: int | None = None) -> MemoryPlan:
    options = PlanOptions(n_parallel=1, ram_limit=ram_limit)
    return plan(model.spec, model.tensors, card(gib), 4096, 512, 16, options)


def in_host_memory(planned: MemoryPlan) -> int:
    return sum(tier.used_bytes for tier in planned.tiers if tier.tier is Tier.HOST)


def test_70b_fits_two_cards_of_24_gib_and_not_one() -> None:
    (whole,) = rank_models(LLAMA_70B, TENSORS, [1])
    alone = made(whole, 24)
    assert in_host_memory(alone) > 15 * GIB
    plans = [made(model, 24) for model in rank_models(LLAMA_70B, TENSORS, [1, 1])]
    for planned in plans:
        assert in_host_memory(planned) == 0
        assert 19 * GIB < planned.weights_bytes < 20.5 * GIB
        assert planned.cache_bytes * 2 == alone.cache_bytes == 80 * 2 * 2 * 1024 * 4096
    # each has the whole embedding and all norms
    shared = sum(TENSORS[name].n_bytes for name in TENSORS if "norm" in name or "token_embd" in name)
    assert abs(sum(each.weights_bytes for each in plans) - alone.weights_bytes - shared) < 0.001 * alone.weights_bytes
    assert min(each.tokens_per_s for each in plans) > 1.9 * speed_if_it_fitted(alone)


def speed_if_it_fitted(planned: MemoryPlan) -> float:
    """Tokens a second if all memory were as fast as the first."""
    fastest = planned.tiers[0].bytes_per_s
    return replace(planned, tiers=tuple(replace(t, bytes_per_s=fastest) for t in planned.tiers)).tokens_per_s


def test_eight_cards_need_8_gib_each() -> None:
    plans = [made(model, 8) for model in rank_models(LLAMA_70B, TENSORS, [1] * 8)]
    assert all(in_host_memory(planned) == 0 and planned.cache_bytes == 80 * 2 * 2 * 128 * 4096 for planned in plans)
    assert max(planned.weights_bytes for planned in plans) < 1.001 * min(planned.weights_bytes for planned in plans)


def test_unequal_cards_by_proportions() -> None:
    large, small = (
        made(model, gib) for model, gib in zip(rank_models(LLAMA_70B, TENSORS, [2, 1]), (32, 16), strict=True)
    )
    assert in_host_memory(large) == in_host_memory(small) == 0
    assert 1.8 < large.weights_bytes / small.weights_bytes < 2.1
    assert (large.cache_bytes, small.cache_bytes) == (5 * 80 * 2**20 * 2, 3 * 80 * 2**20 * 2)


def test_a_rank_that_does_not_fit_says_what_it_needs() -> None:
    model = rank_models(LLAMA_70B, TENSORS, [1, 1])[1]
    with pytest.raises(OutOfDeviceMemory, match=r"the model needs 2\d\.\d GiB with a context of 4096 tokens"):
        made(model, 16, ram_limit=GIB)
