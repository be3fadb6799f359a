"""How a model is divided between devices, which way is taken by default, and what docs/several_gpus.md says of it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vkllm.errors import InvalidParameter, OutOfDeviceMemory, UnsupportedDevice
from vkllm.model.memory.division import asked_proportions, cuts, layer_ranges, proportions
from vkllm.model.memory.limits import DeviceLimits, Speeds
from vkllm.model.memory.plan import PlanOptions, plan
from vkllm.model.memory.split_plan import Member, SplitPlans, plan_splits, shared_limits

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import several_gpus
from machines import MODELS, llama, tensors

GIB = 2**30
SMALL = llama(4, 512, 1536, 8, 8, 2048)


def device(gib: float, gb_per_s: float = 500, kind: str = "discrete", spill_gib: float = 0) -> DeviceLimits:
    return DeviceLimits(
        int(gib * GIB),
        2**32 - 1,
        kind=kind,  # type: ignore[arg-type]
        spill_bytes=int(spill_gib * GIB),
        speeds=Speeds(gb_per_s * 1e9),
    )


def member(card: str, limits: DeviceLimits, *, can_exchange: bool = True) -> Member:
    return Member(f"GPU {card}", limits, card, can_exchange)


def splits(*members: Member, model: str = "Llama-2 7B", n_ctx: int = 1024, **more: object) -> SplitPlans:
    spec = MODELS[model]
    return plan_splits(spec, tensors(spec), members, n_ctx, 512, 8, **more)  # type: ignore[arg-type]


# --- Proportions ------------------------------------------------------------------------------------------------------


def test_parts_are_in_proportion_to_speed() -> None:
    assert proportions([device(24, 900), device(24, 300)], 8 * GIB) == pytest.approx((0.75, 0.25))


def test_devices_of_nearly_the_same_speed_have_equal_parts() -> None:
    assert proportions([device(24, 900), device(24, 870)], 8 * GIB) == (0.5, 0.5)


def test_a_device_without_room_leaves_its_part_to_the_others() -> None:
    fast, slow = proportions([device(2, 900), device(24, 300)], 8 * GIB)
    assert fast == pytest.approx(2 * 0.95 / 8) and fast + slow == pytest.approx(1)
    # two full ones, one after the other: the second only has too little once the first has left it more
    parts = proportions([device(1, 500), device(3, 500), device(24, 500)], 9 * GIB)
    assert parts == pytest.approx((0.95 / 9, 3 * 0.95 / 9, 1 - 4 * 0.95 / 9))


def test_devices_that_are_too_small_together_are_filled_alike() -> None:
    assert proportions([device(3, 900), device(1, 900)], 80 * GIB) == pytest.approx((0.75, 0.25))


def test_asked_parts_are_checked() -> None:
    assert asked_proportions((3, 1), 2) == (0.75, 0.25)
    for numbers, problem in (((1, 1, 1), "2, not 3"), ((1,), "2, not 1"), ((0, 0), "above 0"), ((2, -1), "0 or more")):
        with pytest.raises(InvalidParameter, match=problem):
            asked_proportions(numbers, 2)


def test_layers_follow_parts_and_every_rank_has_one() -> None:
    spec = llama(10, 512, 1536, 8, 8, 2048)
    assert layer_ranges(spec, (0.5, 0.5), [1] * 10) == (range(5), range(5, 10))
    assert layer_ranges(spec, (0.3, 0.3, 0.4), [1] * 10) == (range(3), range(3, 6), range(6, 10))
    assert layer_ranges(spec, (0.998, 0.001, 0.001), [1] * 10) == (range(8), range(8, 9), range(9, 10))
    assert layer_ranges(spec, (0.001, 0.999), [1] * 10) == (range(1), range(1, 10))
    assert layer_ranges(spec, (0.5, 0.5), [1] * 9 + [9]) == (range(9), range(9, 10)), "the projection weighs too"


def test_layers_that_share_a_cache_stay_together() -> None:
    spec = llama(6, 512, 1536, 8, 8, 2048)
    shared = tuple(replace(layer, cache_layer=2) if i >= 4 else layer for i, layer in enumerate(spec.layers))
    spec = replace(spec, layers=shared)
    assert cuts(spec) == (1, 2)
    assert layer_ranges(spec, (0.5, 0.5), [1] * 6) == (range(2), range(2, 6))
    with pytest.raises(InvalidParameter, match="at most 3 devices, not 4"):
        layer_ranges(spec, (0.25,) * 4, [1] * 6)


# --- Plans ------------------------------------------------------------------------------------------------------------


def test_two_cards_hold_half_each_and_are_chosen_for_speed() -> None:
    made = splits(member("a", device(24)), member("b", device(24)))
    alone, tensor, layer = made.plans["none"], made.plans["tensor"], made.plans["layer"]
    whole = alone.plans[0]
    assert made.chosen == "tensor" and "as fast as none" in made.reason
    for one in tensor.plans:
        # the table is whole on both, and 43 pieces of hidden columns are 22 and 21
        assert one.weights_bytes == pytest.approx(whole.weights_bytes / 2, rel=0.04)
        assert one.cache_bytes == whole.cache_bytes / 2
    assert sum(one.cache_bytes for one in layer.plans) == whole.cache_bytes
    assert sum(one.weights_bytes for one in layer.plans) == pytest.approx(whole.weights_bytes, rel=0.01)
    assert layer.layers[0].stop == layer.layers[1].start and layer.layers[1].stop == 32
    ranks_s = [one.token_s(64) for one in tensor.plans]
    assert tensor.token_s(64) == max(ranks_s) + tensor.between_s
    assert layer.token_s(64) > alone.token_s(64), "one user gains nothing from layers"


def test_a_small_model_stays_on_one_card() -> None:
    made = plan_splits(SMALL, tensors(SMALL, "Q4_0"), [member(c, device(24, 4000)) for c in "ab"], 512, 512)
    assert made.chosen == "none" and made.of(None).members == (0,)
    assert made.reason == "no split is expected to be faster"


def test_cards_that_cannot_exchange_are_split_by_layers() -> None:
    made = splits(member("a", device(24)), member("b", device(24), can_exchange=False), model="Llama-2 70B", n_ctx=512)
    assert made.chosen == "layer"
    with pytest.raises(UnsupportedDevice, match=r"GPU b has no VK_EXT_external_memory_host; -sm layer would work"):
        made.of("tensor")
    with pytest.raises(OutOfDeviceMemory, match=r"the model needs .* are missing; .* -sm layer would work"):
        made.of("none")


def test_an_apu_beside_a_card_takes_layers() -> None:
    card, apu = member("card", device(16, 600)), member("apu", device(20, 75, "unified"))
    made = splits(card, apu, model="CodeLlama 34B", n_ctx=512)
    assert made.chosen == "layer"
    first, second = made.of(None).layers
    assert len(first) > 3 * len(second) > 0, "the card is full, the rest goes to the slower memory"
    assert splits(card, apu).chosen == "none"


def test_much_slower_cards_are_no_part_of_a_tensor_split_by_default() -> None:
    made = splits(member("a", device(24, 900)), member("b", device(24, 400)))
    assert made.chosen == "none" and made.plans["tensor"].tokens_per_s > 1.1 * made.plans["none"].tokens_per_s


def test_asked_parts_and_main_device_are_taken() -> None:
    cards = [member(c, device(24)) for c in "abc"]
    made = splits(*cards, tensor_split=(3, 0, 1), main_device=2)
    assert made.plans["none"].members == (2,)
    for mode in ("tensor", "layer"):
        assert made.plans[mode].members == (0, 2) and made.plans[mode].parts == (0.75, 0.25)
    assert len(made.plans["layer"].layers[0]) == pytest.approx(24, abs=1)
    only = splits(*cards, tensor_split=(0, 1, 0))
    assert only.chosen == "none" and "only one has a part" in str(only.refusals["layer"])
    with pytest.raises(InvalidParameter, match=r"-mg\) is the place of one of 3 devices, from 0, not 3"):
        splits(*cards, main_device=3)


def test_more_ranks_than_layers_are_refused() -> None:
    made = plan_splits(SMALL, tensors(SMALL, "Q4_0"), [member(c, device(8)) for c in "abcde"], 512, 512)
    with pytest.raises(InvalidParameter, match=r"at most 4 devices, not 5; name fewer with -dev; -sm none or"):
        made.of("layer")


def test_what_fits_nowhere_is_refused_with_the_reason() -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"neither .* nor all .*: rank 0 \(GPU a\): the model needs"):
        splits(member("a", device(8)), member("b", device(8)), model="Llama-2 70B")


def test_one_card_named_twice_is_shared() -> None:
    limits = device(24, 500, spill_gib=60)
    twice = [member("a", limits), member("a", limits), member("b", limits)]
    shared = shared_limits(twice, is_at_once=True)
    assert [one.memory_bytes / GIB for one in shared] == [12, 12, 24]
    assert [one.speeds.local_bytes_per_s / 1e9 for one in shared] == [250, 250, 500]
    assert [one.spill_bytes / GIB for one in shared] == [20, 20, 20], "system memory is one for all"
    assert shared_limits(twice, is_at_once=False)[0].speeds == limits.speeds
    assert splits(*twice[:2]).chosen == "none"


def test_all_ranks_have_room_for_the_same_sequences() -> None:
    small, large = device(2.6), device(24)
    made = splits(member("a", small), member("b", large), n_ctx=0, tensor_split=(1, 1))
    for mode in ("tensor", "layer"):
        rooms = {(one.n_ctx, one.n_sequences, one.n_blocks) for one in made.plans[mode].plans}
        assert len(rooms) == 1 and made.plans[mode].room.n_ctx < 4096
        (n_ctx, _, _) = rooms.pop()
        assert 256 <= n_ctx < plan(MODELS["Llama-2 7B"], tensors(MODELS["Llama-2 7B"]), large, 0, 512, 8).n_ctx
    parallel = splits(member("a", small), member("b", large), options=PlanOptions(n_parallel=4), tensor_split=(1, 1))
    assert len({(one.n_sequences, one.n_blocks) for one in parallel.plans["tensor"].plans}) == 1


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_script_writes() -> None:
    assert several_gpus.PAGE.read_text(encoding="utf-8") == several_gpus.page(), "run python scripts/several_gpus.py"
