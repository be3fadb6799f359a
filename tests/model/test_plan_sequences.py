"""How many sequences a plan has room for, and the blocks and states that they share: never at the cost of the first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from model_specs import LAYER, of_layers

from vkllm.errors import InvalidParameter
from vkllm.formats.gguf import TensorInfo
from vkllm.model.graph import expected_shapes
from vkllm.model.memory.limits import DeviceLimits, Tier
from vkllm.model.memory.plan import MemoryPlan, PlanOptions, plan
from vkllm.model.memory.states import slot_bytes
from vkllm.model.mixers import DeltaNet
from vkllm.model.spec import ModelSpec

GIB = 2**30
STATE = replace(LAYER, n_heads=0, n_kv_heads=0, head_dim=0, rope=None, mixer=DeltaNet(2, 6, 16, 4))
TIED = "token_embd.weight"  # so that a token reads all weights
PLAIN = replace(of_layers(LAYER, LAYER), output_weight=TIED)
WINDOW = of_layers(replace(LAYER, window=100), LAYER, replace(LAYER, window=40))
HYBRID = replace(of_layers(STATE, LAYER), output_weight=TIED)
BLOCK_BYTES = 32 * 2 * 2 * 64  # of a layer: keys and values of two heads of 32, in float16


def planned(
    spec: ModelSpec, n_ctx: int, n_parallel: int | None = None, local: int = GIB, host: int = 0, max_rows: int = 64
) -> MemoryPlan:
    """max_rows: 64, so a sequence has 7 blocks of a window of 100: the rows of a step and the window before them."""
    tensors = {name: TensorInfo(name, shape, "F32", 0, 0) for name, shape in expected_shapes(spec).items()}
    limits = DeviceLimits(memory_bytes=local, max_binding_bytes=2**27, spill_bytes=host)
    return plan(spec, tensors, limits, n_ctx, max_rows, options=PlanOptions(n_parallel=n_parallel))


def counts(made: MemoryPlan) -> tuple[int, int, int, int]:
    return made.n_sequences, made.n_blocks, made.n_window_blocks, made.n_state_slots


def test_sequences_that_share_the_blocks_of_one_context_cost_nothing() -> None:
    assert counts(planned(PLAIN, 300)) == (32, 10, 0, 0)
    assert planned(PLAIN, 300).total_bytes == planned(PLAIN, 300, 1).total_bytes


def test_sequences_that_are_asked_for_have_a_context_each_if_there_is_room() -> None:
    assert counts(planned(PLAIN, 300, 1)) == (1, 10, 0, 0)
    made = planned(PLAIN, 300, 5)
    assert counts(made) == (5, 50, 0, 0) and made.cache_bytes == 2 * 50 * BLOCK_BYTES
    assert made.tokens_per_s == planned(PLAIN, 300, 1).tokens_per_s, "one of them reads only its own"


def test_blocks_take_what_is_left_and_no_weights_leave_fast_memory_for_them() -> None:
    alone = planned(PLAIN, 4096, 1)

    def on_card(left_bytes: int, n_parallel: int) -> MemoryPlan:
        return planned(PLAIN, 4096, n_parallel, (alone.total_bytes + left_bytes) * 20 // 19 + 20, GIB)

    made = on_card(60 * 2 * BLOCK_BYTES, 8)
    assert counts(made) == (8, 128 + 60, 0, 0)
    assert {part.tier for parts in made.matrices.values() for part in parts} == {Tier.LOCAL}
    assert on_card(0, 8).n_blocks == 128, "nothing is left: all share one context"
    assert on_card(-40_000, 8).n_blocks == 128 and on_card(-40_000, 8).tokens_per_s == on_card(-40_000, 1).tokens_per_s


def test_each_further_sequence_has_blocks_for_its_window() -> None:
    one = planned(WINDOW, 4096, 1)
    assert counts(one) == (1, 128, 7, 0)
    assert one.cache_bytes == (128 + 2 * 7) * BLOCK_BYTES
    assert counts(planned(WINDOW, 4096, 3)) == (3, 3 * 128, 7 + 2 * 6, 0)
    assert planned(WINDOW, 200, 1).n_window_blocks == 7 == planned(WINDOW, 200, 1).n_blocks
    assert planned(WINDOW, 128, 1).n_window_blocks == 4, "as many as the context"
    assert planned(WINDOW, 4096, 3).tokens_per_s == one.tokens_per_s


def test_each_further_sequence_has_four_states() -> None:
    assert [planned(HYBRID, 64, n).n_state_slots for n in (1, 2, 8)] == [6, 10, 34]
    made = planned(HYBRID, 64, 2)
    assert made.states_bytes == 10 * slot_bytes(HYBRID)


def test_by_default_windows_and_states_take_little_beside_the_weights() -> None:
    for spec in (WINDOW, HYBRID):
        one, made = planned(spec, 4096, 1), planned(spec, 4096)
        more = made.total_bytes - one.total_bytes
        assert more <= one.weights_bytes // 16
        larger = planned(spec, 4096, made.n_sequences + 1)
        per_sequence = planned(spec, 4096, 2).cache_bytes - planned(spec, 4096, 1).cache_bytes
        assert made.n_blocks == one.n_blocks and larger.n_sequences == made.n_sequences + 1 and per_sequence > 0
        assert made.tokens_per_s == pytest.approx(one.tokens_per_s, rel=1e-12)


def test_fewer_sequences_run_where_their_states_would_push_weights_out() -> None:
    alone = planned(HYBRID, 64, 1)
    made = planned(HYBRID, 64, 16, (alone.total_bytes + 9 * slot_bytes(HYBRID)) * 20 // 19 + 20, GIB)
    assert (made.n_sequences, made.n_state_slots) == (3, 14)


@pytest.mark.parametrize("wrong", [0, -1, 33, 2.5, "2", True])
def test_wrong_numbers_of_sequences_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidParameter, match=r"n_parallel \(-np\)"):
        PlanOptions(n_parallel=wrong)  # type: ignore[arg-type]
