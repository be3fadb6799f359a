"""The plan counts what will be allocated, says where it lies, and refuses what cannot be held."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from model_specs import TINY_SPEC, WIDE_SPEC, tiny_spec

from vkllm.errors import InvalidParameter, OutOfDeviceMemory
from vkllm.formats.gguf import TensorInfo
from vkllm.model.graph import expected_shapes
from vkllm.model.memory.limits import DeviceLimits, Speeds, Tier, without_margin
from vkllm.model.memory.plan import MemoryPlan, PlanOptions, cache_bytes, decode_bytes, plan
from vkllm.model.spec import ModelSpec

MIB, GIB = 2**20, 2**30


def table(spec: ModelSpec, matrix_format: str = "Q4_0") -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, shape, matrix_format if len(shape) == 2 else "F32", 0, 0)
        for name, shape in expected_shapes(spec).items()
    }


TENSORS = table(TINY_SPEC)
LARGE = DeviceLimits(memory_bytes=2**31, max_binding_bytes=2**27)

# Ten layers whose matrices take 640 KiB a layer in Q8_0, so that what lies where can be counted by hand.
DEEP = tiny_spec(
    n_layers=10,
    n_heads=8,
    n_kv_heads=8,
    head_dim=32,
    d_model=256,
    d_ff=512,
    n_vocab=1024,
    n_ctx_train=8192,
)
DEEP_TENSORS = table(DEEP, "Q8_0")


def card(local: int, host: int, **changes: object) -> DeviceLimits:
    """A card with so many bytes for a plan, margins not counted."""
    limits = DeviceLimits(memory_bytes=_budget(local), max_binding_bytes=2**27, spill_bytes=_budget(host))
    return replace(limits, **changes)  # type: ignore[arg-type]


def _budget(n_bytes: int) -> int:
    budget = n_bytes * 20 // 19
    return budget + 1 if without_margin(budget) < n_bytes else budget


def deep(limits: DeviceLimits, n_ctx: int = 256, **options: object) -> MemoryPlan:
    return plan(DEEP, DEEP_TENSORS, limits, n_ctx, max_rows=8, options=PlanOptions(**options))  # type: ignore[arg-type]


def tiers_of(made: MemoryPlan, *weights: str) -> set[Tier]:
    return {part.tier for names, parts in made.matrices.items() if set(weights) & set(names) for part in parts}


def bytes_in(made: MemoryPlan, tier: Tier) -> Mapping[str, int]:
    found = [t for t in made.tiers if t.tier is tier]
    return {"weights": found[0].weights_bytes, "cache": found[0].cache_bytes, "arena": found[0].arena_bytes}


# --- How much ---------------------------------------------------------------------------------------------------------


def test_bytes_of_each_part() -> None:
    made = plan(TINY_SPEC, TENSORS, LARGE, n_ctx=1024, max_rows=8)
    n_values = sum(int(np.prod(shape)) for shape in expected_shapes(TINY_SPEC).values() if len(shape) == 2)
    n_vector = sum(shape[0] for shape in expected_shapes(TINY_SPEC).values() if len(shape) == 1)
    exact = n_values * 18 / 32 + 4 * n_vector
    n_buffers = 2 * len(expected_shapes(TINY_SPEC))
    assert exact <= made.weights_bytes <= exact + 256 * n_buffers, "each buffer is aligned"
    assert made.cache_bytes == 1024 * cache_bytes(TINY_SPEC, 1) == 1024 * 2 * 2 * 2 * 2 * 32


@pytest.mark.parametrize(("fmt", "superblock_bytes"), [("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 212)])
def test_bytes_of_superblocks(fmt: str, superblock_bytes: int) -> None:
    shapes = expected_shapes(WIDE_SPEC)
    made = plan(WIDE_SPEC, table(WIDE_SPEC, fmt), LARGE, n_ctx=64, max_rows=8)
    n_superblocks = sum(shape[0] * shape[1] // 256 for shape in shapes.values() if len(shape) == 2)
    n_vector = sum(shape[0] for shape in shapes.values() if len(shape) == 1)
    exact = n_superblocks * superblock_bytes + 4 * n_vector
    assert exact <= made.weights_bytes <= exact + 256 * 2 * len(shapes)


def test_a_quantized_cache_takes_36_bytes_for_32_values() -> None:
    plain, keys, both = (
        deep(LARGE, 1024, type_k=k, type_v=v).cache_bytes for k, v in (("f16", "f16"), ("q8_0", "f16"), ("q8_0",) * 2)
    )
    assert plain == 1024 * 10 * 2 * 256 * 2
    assert both * 64 == plain * 36
    assert keys * 2 == plain + both


def test_the_cache_holds_whole_blocks_of_tokens() -> None:
    assert deep(LARGE, 257).cache_bytes == deep(LARGE, 288).cache_bytes > deep(LARGE, 256).cache_bytes


def test_a_decode_step_reads_each_weight_once_and_the_cache() -> None:
    shapes = expected_shapes(TINY_SPEC)
    untied = decode_bytes(TINY_SPEC, TENSORS, 0)
    n_read = sum(int(np.prod(s)) for n, s in shapes.items() if len(s) == 2 and n != "token_embd.weight")
    n_vector = sum(shape[0] for shape in shapes.values() if len(shape) == 1)
    assert untied == pytest.approx(n_read * 18 / 32 + 4 * n_vector, rel=1e-3)
    assert decode_bytes(TINY_SPEC, TENSORS, 100) - untied == 100 * cache_bytes(TINY_SPEC, 1)
    tied = tiny_spec(output_weight="token_embd.weight")
    assert decode_bytes(tied, TENSORS, 0) == untied, "the embedding is the vocabulary projection then"


# --- Where ------------------------------------------------------------------------------------------------------------


def test_all_lies_in_the_cards_own_memory_while_it_fits() -> None:
    made = deep(card(GIB, GIB))
    assert bytes_in(made, Tier.HOST) == {"weights": 0, "cache": 0, "arena": 0}
    assert made.arena_tier is Tier.LOCAL and set(made.cache_tiers) == {Tier.LOCAL}


def test_the_embedding_table_leaves_first_then_the_first_layers() -> None:
    total = deep(card(GIB, GIB)).total_bytes
    embedding = 1024 * 256 // 32 * 34
    made = deep(card(total - embedding, GIB))
    assert tiers_of(made, "token_embd.weight") == {Tier.HOST}
    assert bytes_in(made, Tier.HOST)["weights"] == embedding
    assert made.token_s(0) == deep(card(GIB, GIB)).token_s(0), "that costs nothing"

    made = deep(card(total - embedding - 700 * 1024, GIB))
    assert {name for name in DEEP_TENSORS if tiers_of(made, name) & {Tier.HOST}} <= {
        "token_embd.weight",
        *(name for name in DEEP_TENSORS if name.startswith(("blk.0.", "blk.1."))),
    }
    assert tiers_of(made, "blk.9.attn_q.weight", "output.weight") == {Tier.LOCAL}
    assert made.token_s(0) > deep(card(GIB, GIB)).token_s(0)


def test_a_tied_embedding_is_read_whole_and_leaves_last() -> None:
    spec = replace(DEEP, output_weight="token_embd.weight")
    limits = card(3 * MIB, GIB)
    made = plan(spec, table(spec, "Q8_0"), limits, 256, max_rows=8)
    assert tiers_of(made, "token_embd.weight") == {Tier.LOCAL}
    assert tiers_of(made, "blk.0.attn_q.weight") == {Tier.HOST}
    assert sum(tier.read_bytes for tier in made.tiers) == made.weights_bytes


def test_the_cache_and_activations_stay_while_weights_leave() -> None:
    whole = deep(card(GIB, GIB), 1024)
    made = deep(card(whole.cache_bytes + whole.arena_bytes + MIB, GIB), 1024)
    assert set(made.cache_tiers) == {Tier.LOCAL} and made.arena_tier is Tier.LOCAL
    assert bytes_in(made, Tier.HOST)["weights"] > made.weights_bytes - MIB


def test_a_cache_larger_than_the_cards_memory_lies_in_both() -> None:
    whole = deep(card(GIB, GIB), 4096)
    made = deep(card(whole.arena_bytes + whole.cache_bytes // 2 + MIB, GIB), 4096)
    assert made.cache_tiers[9] is Tier.LOCAL and made.cache_tiers[0] is Tier.HOST
    assert tiers_of(made, *DEEP_TENSORS) == {Tier.HOST}


def test_a_matrix_above_the_largest_binding_is_cut_by_rows() -> None:
    limits = replace(LARGE, max_binding_bytes=150_000)
    made = deep(limits)
    parts = made.matrices[("output.weight",)]
    assert len(parts) > 1 and sum(part.n_rows for part in parts) == 1024
    assert all(max(part.stack.plane_bytes(part.n_rows)) <= 150_000 for part in parts)
    assert [part.first_row % 128 for part in parts] == [0] * len(parts)
    assert deep(limits).weights_bytes == deep(LARGE).weights_bytes


def test_a_tensor_that_no_cut_makes_bindable_is_named() -> None:
    limits = replace(LARGE, max_binding_bytes=200_000)
    with pytest.raises(OutOfDeviceMemory, match=r"128 rows of tensor blk\.9\.ffn_down\.weight take 262,144 bytes"):
        plan(DEEP, table(DEEP, "F32"), limits, 32, max_rows=8)


def test_neighbours_of_one_format_are_one_matrix_and_others_are_not() -> None:
    mixed = DEEP_TENSORS | {"blk.0.attn_v.weight": replace(DEEP_TENSORS["blk.0.attn_v.weight"], format="Q6_K")}
    made = plan(DEEP, mixed, LARGE, 256, max_rows=8)
    qkv = [tuple(f"blk.{layer}.attn_{part}.weight" for part in "qkv") for layer in (0, 1)]
    assert [part.stack.tensors for part in made.matrices[qkv[0]]] == [qkv[0][:2], qkv[0][2:]]
    assert [(part.stack.tensors, part.n_rows) for part in made.matrices[qkv[1]]] == [(qkv[1], 768)]


def test_n_gpu_layers_counts_from_the_last_layer_and_then_the_rest() -> None:
    limits = card(GIB, GIB)
    made = deep(limits, n_gpu_layers=3)
    local = {name for name in DEEP_TENSORS if tiers_of(made, name) == {Tier.LOCAL}}
    assert {name.split(".")[1] for name in local} == {"7", "8", "9"}
    assert tiers_of(made, "output.weight", "token_embd.weight") == {Tier.HOST}
    assert set(made.cache_tiers) == {Tier.LOCAL}
    assert tiers_of(deep(limits, n_gpu_layers=10), "output.weight") == {Tier.HOST}
    assert deep(limits, n_gpu_layers=11) == deep(limits, n_gpu_layers=99) == deep(limits)
    assert tiers_of(deep(limits, n_gpu_layers=0), *DEEP_TENSORS) == {Tier.HOST}


def test_n_gpu_layers_means_nothing_where_memory_is_unified() -> None:
    assert deep(card(GIB, GIB, kind="unified"), n_gpu_layers=0) == deep(card(GIB, GIB, kind="unified"))


def test_limits_of_the_user_bound_the_tiers() -> None:
    made = deep(card(GIB, GIB), vram_limit=3 * MIB)
    assert made.tiers[0].available_bytes == 3 * MIB >= made.tiers[0].used_bytes > 2 * MIB
    assert made.tiers[1].available_bytes == GIB
    unified = deep(card(10 * MIB, GIB, kind="unified"), ram_limit=12 * MIB)
    assert [tier.available_bytes for tier in unified.tiers] == [10 * MIB, 2 * MIB]
    nothing_local = deep(card(GIB, GIB), vram_limit=0)
    assert [tier.tier for tier in nothing_local.tiers] == [Tier.HOST]
    assert nothing_local.arena_tier is Tier.HOST


# --- How fast ---------------------------------------------------------------------------------------------------------


def test_a_token_takes_the_time_to_read_each_tier_and_to_start_each_layer() -> None:
    limits = card(3 * MIB, GIB, speeds=Speeds(local_bytes_per_s=1e9, host_bytes_per_s=1e8, layer_s=1e-3))
    made = deep(limits)
    local, host = made.tiers
    assert host.weights_bytes - host.read_bytes == 1024 * 256 // 32 * 34, "the embedding table is not read"
    expected = local.read_bytes / 1e9 + host.read_bytes / 1e8 + 10e-3
    assert made.token_s(0) == pytest.approx(expected)
    assert made.token_s(128) - made.token_s(0) == pytest.approx(128 * cache_bytes(DEEP, 1) / 1e9)
    assert made.tokens_per_s == pytest.approx(1 / made.token_s(128))
    total = decode_bytes(DEEP, DEEP_TENSORS, 0)
    assert local.read_bytes + host.read_bytes == pytest.approx(total, rel=1e-3)


def test_shared_memory_is_as_fast_as_the_devices_own() -> None:
    speeds = Speeds(local_bytes_per_s=1e9, host_bytes_per_s=1e8)
    split = deep(card(3 * MIB, GIB, kind="unified", speeds=speeds))
    assert {tier.tier for tier in split.tiers if tier.weights_bytes} == {Tier.LOCAL, Tier.SHARED}
    assert split.token_s(100) == pytest.approx(deep(card(GIB, GIB, kind="unified", speeds=speeds)).token_s(100))


# --- The longest context ----------------------------------------------------------------------------------------------


def test_context_0_is_the_models_own_where_that_fits() -> None:
    assert deep(card(GIB, 0), 0).n_ctx == 8192


def test_context_0_takes_what_the_cards_memory_leaves_and_spills_nothing_for_it() -> None:
    total = deep(card(GIB, GIB), 6400).total_bytes
    made = deep(card(total, GIB), 0)
    assert made.n_ctx == 6400 and tiers_of(made, *DEEP_TENSORS) == {Tier.LOCAL}
    assert deep(card(total - 1, GIB), 0).n_ctx == 6368


def test_context_0_spills_weights_for_the_usual_context_only() -> None:
    assert deep(card(GIB, GIB), 4096).total_bytes > 20 * MIB
    assert deep(card(20 * MIB, GIB), 0).n_ctx == 4096
    unified = deep(card(20 * MIB, GIB, kind="unified"), 0)
    assert unified.n_ctx == 8192, "where memory is unified nothing is slower elsewhere"


def test_context_0_goes_below_the_usual_where_nothing_else_fits() -> None:
    made = deep(card(deep(LARGE, 1000).total_bytes, 0), 0)
    assert made.n_ctx == 1024
    with pytest.raises(OutOfDeviceMemory, match="context of 256 tokens"):
        deep(card(deep(LARGE, 64).total_bytes, 0), 0)


def test_context_0_keeps_a_layers_cache_below_the_largest_binding() -> None:
    made = deep(replace(LARGE, max_binding_bytes=5000 * 256 * 2), 0)
    assert made.n_ctx == 5000 // 32 * 32


# --- Refusals ---------------------------------------------------------------------------------------------------------


def refusal(limits: DeviceLimits, n_ctx: int = 4096, **options: object) -> str:
    with pytest.raises(OutOfDeviceMemory) as caught:
        deep(limits, n_ctx, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_refusal_says_what_is_missing_and_the_context_that_fits() -> None:
    needed = deep(LARGE, 4096).total_bytes
    message = refusal(card(needed - 5 * MIB, 0))
    assert f"needs {needed / MIB:.1f} MiB with a context of 4096 tokens" in message
    assert "5.0 MiB are missing" in message
    found = re.search(r"a context of (\d+) tokens would fit", message)
    assert found is not None
    longest = int(found[1])
    assert deep(card(needed - 5 * MIB, 0), longest).n_ctx == longest
    refusal(card(needed - 5 * MIB, 0), longest + 32)


def test_a_refusal_suggests_the_largest_quantization_that_fits() -> None:
    layer = replace(DEEP.layers[0], n_heads=16, n_kv_heads=2)
    spec = replace(DEEP, d_model=512, layers=(layer,) * DEEP.n_layers)
    q8, q6 = (plan(spec, table(spec, f), LARGE, 256, 8).total_bytes for f in ("Q8_0", "Q6_K"))
    with pytest.raises(OutOfDeviceMemory, match=r"the same model in Q8_0 \(context 256\) would fit"):
        plan(spec, table(spec, "F16"), card(q8, 0), 256, 8)
    with pytest.raises(OutOfDeviceMemory, match=r"the same model in Q6_K \(context 256\) would fit"):
        plan(spec, table(spec, "F16"), card(q8 - 1, 0), 256, 8)
    with pytest.raises(OutOfDeviceMemory, match=r"the same model in Q6_K \(context 256\) would fit"):
        plan(spec, table(spec, "Q8_0"), card(q6, 0), 256, 8)


def test_a_refusal_names_the_users_own_limits() -> None:
    message = refusal(card(GIB, GIB), vram_limit=MIB, ram_limit=MIB)
    assert "the model without --vram-limit and --ram-limit would fit" in message
    message = refusal(card(GIB, 2 * MIB), n_gpu_layers=0)
    assert "the model without -ngl would fit" in message


def test_what_cannot_fit_at_all_gets_no_false_hope() -> None:
    message = refusal(DeviceLimits(100_000, 2**27))
    assert message.endswith("use a smaller model or quantization")


def test_a_cache_above_the_largest_binding_is_refused_with_the_context_that_fits() -> None:
    message = refusal(replace(LARGE, max_binding_bytes=2000 * 256 * 2))
    assert "the cache of a layer of 4096 tokens takes 2.0 MiB" in message
    assert "a context of 1984 tokens would fit" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type_k": "q5_1"}, "type_k (-ctk) must be f16 or q8_0, not 'q5_1'"),
        ({"type_v": "f32"}, "type_v (-ctv) must be"),
        ({"n_gpu_layers": -2}, "n_gpu_layers (-ngl) must be a whole number of at least 0, or -1 for all, not -2"),
        ({"vram_limit": -1}, "vram_limit (--vram-limit) must be a whole number of at least 0, not -1"),
    ],
)
def test_options_that_no_device_could_meet_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(words)):
        deep(LARGE, **options)


@pytest.mark.parametrize(
    ("head_dim", "options", "words"),
    [
        (40, {"type_k": "q8_0"}, "type_k (-ctk) q8_0 needs heads of a multiple of 32 numbers, and this model has"),
        (80, {"type_v": "q8_0"}, "type_v (-ctv) q8_0 needs heads of a multiple of 32 numbers, and this model has"),
    ],
)
def test_heads_that_are_no_whole_blocks_are_cached_in_f16_only(
    head_dim: int, options: dict[str, str], words: str
) -> None:
    spec = tiny_spec(head_dim=head_dim)
    with pytest.raises(InvalidParameter, match=re.escape(words) + f".* {head_dim}; choose f16"):
        plan(spec, table(spec), LARGE, 64, max_rows=8, options=PlanOptions(**options))
    assert plan(spec, table(spec), LARGE, 64, max_rows=8).cache_bytes > 0
