"""States in a plan: counted once, whatever the context, and read and written by every token."""

from __future__ import annotations

from dataclasses import replace

import pytest
from model_specs import LAYER, of_layers

from vkllm.formats.gguf import TensorInfo
from vkllm.model.graph import expected_shapes
from vkllm.model.memory.limits import DeviceLimits
from vkllm.model.memory.plan import MemoryPlan, PlanOptions, plan
from vkllm.model.memory.states import n_state_slots, slot_bytes, slot_words
from vkllm.model.mixers import DeltaNet
from vkllm.model.spec import ModelSpec

NET = DeltaNet(2, 6, 16, 4)
HYBRID = of_layers(replace(LAYER, n_heads=0, n_kv_heads=0, head_dim=0, rope=None, mixer=NET), LAYER)
SLOT_BYTES = 4 * (3 * 160 + 6 * 16 * 16)
LARGE = DeviceLimits(memory_bytes=2**31, max_binding_bytes=2**27)


def planned(spec: ModelSpec, n_ctx: int) -> MemoryPlan:
    tensors = {name: TensorInfo(name, shape, "F32", 0, 0) for name, shape in expected_shapes(spec).items()}
    return plan(spec, tensors, LARGE, n_ctx, max_rows=8, options=PlanOptions(n_parallel=1))


def test_states_do_not_grow_with_the_context_and_keys_and_values_do() -> None:
    short, long = planned(HYBRID, 64), planned(HYBRID, 256)
    assert short.states_bytes == long.states_bytes == 6 * SLOT_BYTES and short.n_state_slots == 6
    keys_and_values = 2 * 2 * 32 * 2  # of a token: two heads of 32, in float16, of one layer
    assert long.cache_bytes == 256 * keys_and_values + 6 * SLOT_BYTES
    assert long.cache_bytes - short.cache_bytes == 192 * keys_and_values


def test_a_token_reads_and_writes_one_state() -> None:
    made = planned(HYBRID, 64)
    (tier,) = made.tiers
    moved = made.token_s(0) - made.overhead_s - tier.read_bytes / tier.bytes_per_s
    assert moved == pytest.approx(2 * SLOT_BYTES / tier.bytes_per_s)


def test_a_model_without_states_has_no_slots() -> None:
    made = planned(of_layers(LAYER), 64)
    assert (made.n_state_slots, made.states_bytes, slot_bytes(of_layers(LAYER))) == (0, 0, 0)


@pytest.mark.parametrize(("weights_bytes", "n_slots"), [(0, 6), (16 * 7 * SLOT_BYTES, 7), (2**40, 16)])
def test_slots_take_a_part_of_what_the_weights_take(weights_bytes: int, n_slots: int) -> None:
    assert n_state_slots(HYBRID, weights_bytes) == n_slots


def test_a_state_begins_at_a_multiple_of_16_numbers() -> None:
    layer = replace(HYBRID.layers[0], mixer=DeltaNet(1, 1, 4, 4))
    assert slot_words(layer) == (48, 64)  # 3 x 12 numbers, 4 x 4
