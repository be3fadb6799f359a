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
from vkllm.model.mixers import DeltaNet, Mamba2, Mixer, ShortConvolution
from vkllm.model.shards.rank_model import RankModel, rank_models
from vkllm.model.spec import ModelSpec

GIB = 2**30
LLAMA_70B = llama_spec(
    n_layers=80, n_heads=64, n_kv_heads=8, head_dim=128, d_model=8192, d_ff=28672, n_vocab=32000, n_ctx_train=4096,
)  # fmt: skip
LLAMA_70B = replace(LLAMA_70B, output_weight="output.weight")


def table(spec: ModelSpec) -> dict[str, TensorInfo]:
    """As Q4_K_M: some matrices in Q6_K."""
    found = {}
    for name, shape in expected_shapes(spec).items():
        is_large = name == "output.weight" or ("ffn_down" in name and int(name.split(".")[1]) % 2)
        fmt = "F32" if len(shape) == 1 or shape[0] == 1 or shape[1] < 256 else "Q6_K" if is_large else "Q4_K"
        n_bytes = shape[0] * shape[-1] * weight_format(fmt).block_bytes // weight_format(fmt).block
        found[name] = TensorInfo(name, shape, fmt, 0, n_bytes if len(shape) > 1 else 4 * shape[0])
    return found


TENSORS = table(LLAMA_70B)


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


MIXERS = (
    *(DeltaNet(16, 48, 128, 4), Mamba2(128, 64, 128, 1, 4), Mamba2(128, 64, 128, 8, 4)),
    ShortConvolution(3, 8192),
)


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_ranks_have_their_part_of_what_stands_in_place_of_attention(mixer: Mixer) -> None:
    """Of its matrices and its states. All ranks have B and C of a single group, which are 1 % of its rows."""
    layer = replace(LLAMA_70B.layers[0], n_heads=0, n_kv_heads=0, head_dim=0, rope=None, mixer=mixer, d_ff=0,
                    ffn_norm=None)  # fmt: skip
    spec = replace(LLAMA_70B, layers=(layer,) * 8)
    tensors = table(spec)
    for n in (2, 3, 8):
        models = rank_models(spec, tensors, [1] * n)
        parts = [
            sum(info.n_bytes for name, info in model.tensors.items() if name.startswith("blk.")) for model in models
        ]
        whole = sum(info.n_bytes for name, info in tensors.items() if name.startswith("blk."))
        assert whole <= sum(parts) < 1.08 * whole and max(parts) < (1.2 if n == 3 else 1.11) * whole / n
        alone = plan(spec, tensors, card(64), 4096, 512, 16, PlanOptions(n_parallel=1))
        plans = [made(model, 64) for model in models]
        slots = [planned.states_bytes // planned.n_state_slots for planned in plans]
        of_one = alone.states_bytes // alone.n_state_slots
        assert of_one <= sum(slots) < 1.02 * of_one and max(slots) < 1.2 * of_one / n


def test_a_rank_that_does_not_fit_says_what_it_needs() -> None:
    model = rank_models(LLAMA_70B, TENSORS, [1, 1])[1]
    with pytest.raises(OutOfDeviceMemory, match=r"the model needs 2\d\.\d GiB with a context of 4096 tokens"):
        made(model, 16, ram_limit=GIB)
