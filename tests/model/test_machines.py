"""Heaps as drivers report them become tiers, and docs/machines.md says what the plan says of real machines."""

import re
import sys
from pathlib import Path

import pytest

from vkllm.errors import OutOfDeviceMemory
from vkllm.model.memory.limits import DeviceLimits, HeapLimits, Speeds, Tier, limits_of_heaps, without_margin
from vkllm.model.memory.plan import MemoryPlan, plan

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import machines  # noqa: E402
from machines import MACHINES, MODELS, Machine, planned  # noqa: E402

GIB = 2**30
BY_NAME = {machine.name: machine for machine in MACHINES}


def machine(part: str) -> Machine:
    (found,) = (made for name, made in BY_NAME.items() if part in name)
    return found


def runs(part: str, model: str, n_ctx: int = 4096) -> MemoryPlan:
    made = planned(machine(part), MODELS[model], n_ctx)
    assert isinstance(made, MemoryPlan), made
    return made


# --- Heaps ------------------------------------------------------------------------------------------------------------


def limits(kind: str, *heaps: HeapLimits, host_bytes: int = 2**50) -> DeviceLimits:
    return limits_of_heaps(
        kind,  # type: ignore[arg-type]
        heaps,
        max_binding_bytes=2**32 - 1,
        max_allocation_bytes=2**32 - 4,
        host_bytes=host_bytes,
        speeds=Speeds(),
    )


def test_the_heaps_of_an_apu_are_one_pool() -> None:
    apu = limits("unified", HeapLimits(3 * GIB, None, False), HeapLimits(6 * GIB, 5 * GIB, True), host_bytes=0)
    assert (apu.memory_bytes, apu.spill_bytes, apu.spill_tier) == (5 * GIB, 3 * GIB, Tier.SHARED)
    assert apu.bytes_per_s(Tier.SHARED) == apu.bytes_per_s(Tier.LOCAL)


def test_the_window_of_a_card_without_resizable_bar_is_not_planned_for() -> None:
    bar = HeapLimits(256 * 2**20, None, True)
    vram, system = HeapLimits(8 * GIB, None, True), HeapLimits(20 * GIB, 18 * GIB, False)
    for heaps in ((vram, system, bar), (bar, system, vram)):
        card = limits("discrete", *heaps)
        assert (card.memory_bytes, card.spill_bytes, card.spill_tier) == (8 * GIB, 18 * GIB, Tier.HOST)
    assert card.bytes_per_s(Tier.HOST) < card.bytes_per_s(Tier.LOCAL)


def test_what_a_card_spills_is_bounded_by_free_system_memory() -> None:
    vram, system = HeapLimits(8 * GIB, None, True), HeapLimits(20 * GIB, None, False)
    assert limits("discrete", vram, system, host_bytes=5 * GIB).spill_bytes == 5 * GIB


def test_a_driver_on_the_cpu_takes_system_memory_for_all() -> None:
    assert limits("cpu", HeapLimits(2 * GIB, None, True), host_bytes=GIB).memory_bytes == GIB


def test_a_margin_stays_free_of_every_budget() -> None:
    assert without_margin(10 * GIB) == 10 * GIB - 10 * GIB // 20
    assert without_margin(80 * GIB) == 79 * GIB
    assert without_margin(0) == 0


# --- Machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carve_out", ["1 GiB carve-out", "4 GiB carve-out"])
def test_a_steam_deck_runs_7b_with_its_own_context_whatever_the_carve_out(carve_out: str) -> None:
    made = runs(f"Steam Deck 16 GB, {carve_out}", "Llama-2 7B")
    assert {tier.tier for tier in made.tiers} == {Tier.LOCAL, Tier.SHARED}
    # 3.72 GB of weights, and 1.1 GB of keys and values at half the context, at 85 % of 88 GB/s, and 1.2 ms more
    assert made.tokens_per_s == pytest.approx(1 / ((3.72e9 + 1.07e9) / (0.85 * 88e9) + 32 * 36e-6), rel=0.01)


def test_a_steam_deck_runs_13b_with_a_shorter_context() -> None:
    assert isinstance(planned(machine("Deck 16 GB, 1 GiB"), MODELS["Llama-2 13B"]), OutOfDeviceMemory)
    short, longer = (runs(f"Deck 16 GB, {n} GiB", "Llama-2 13B", 0) for n in (1, 4))
    assert 512 <= short.n_ctx < longer.n_ctx < 4096


def test_an_apu_with_32_gb_runs_13b() -> None:
    runs("780M", "Llama-2 13B")
    assert isinstance(planned(machine("780M"), MODELS["CodeLlama 34B"]), OutOfDeviceMemory)


def test_a_24_gb_card_runs_70b_with_the_rest_in_system_memory() -> None:
    made = runs("7900 XTX", "Llama-2 70B")
    local, host = made.tiers
    assert local.cache_bytes == made.cache_bytes and host.cache_bytes == 0
    assert local.free_bytes < 10 * 2**20, "the card is full before anything leaves it"
    assert made.tokens_per_s == pytest.approx(25e9 / host.read_bytes, rel=0.1), "PCIe is what takes the time"
    assert runs("7900 XTX", "CodeLlama 34B").tiers[1].used_bytes == 0


def test_a_12_gb_card_without_resizable_bar_runs_34b() -> None:
    made = runs("RTX 3060", "CodeLlama 34B")
    assert made.tiers[1].weights_bytes > 5 * GIB
    assert isinstance(planned(machine("RTX 3060"), MODELS["Llama-2 70B"]), OutOfDeviceMemory)


def test_amdvlks_limit_is_kept() -> None:
    made = runs("AMDVLK", "CodeLlama 34B")
    parts = [part for parts in made.matrices.values() for part in parts]
    assert max(max(part.stack.plane_bytes(part.n_rows)) for part in parts) <= 2**31


def test_lavapipe_refuses_before_loading_and_binds_large_vocabularies_in_parts() -> None:
    for model in MODELS.values():
        assert isinstance(planned(machine("lavapipe"), model), OutOfDeviceMemory)
    gemma = machines.llama(26, 1152, 6912, 4, 1, 8192)
    tensors = machines.tensors(gemma, "Q8_0")
    vocabulary = {"token_embd.weight", "output.weight"}
    tensors |= {name: type(info)(name, (262144, 1152), "Q8_0", 0, 0) for name in vocabulary for info in [tensors[name]]}
    made = plan(gemma, tensors, machine("lavapipe").limits, 2048, 512, 8)
    parts = made.matrices[("output.weight",)]
    assert len(parts) == 3 and sum(part.n_rows for part in parts) == 262144
    assert all(max(part.stack.plane_bytes(part.n_rows)) <= 2**27 for part in parts)


def test_expected_speeds_are_those_measured_on_an_h100() -> None:
    # docs/performance.md: tg128 at depths 0 and 4096; 70B 63.7 as tg64, 68.0 without the first step
    made = runs("H100", "Llama-2 7B")
    assert 1 / made.token_s(64) == pytest.approx(519.8, rel=0.06)
    assert 1 / made.token_s(4096 + 64) == pytest.approx(365.1, rel=0.02)
    assert 1 / runs("H100", "Llama-2 70B").token_s(32) == pytest.approx(68.0, rel=0.01)


def test_expected_speeds_are_near_those_published_for_radeons() -> None:
    ratios = sorted(machines.expected_7b(gb_per_s) / published for _, gb_per_s, published in machines.PUBLISHED)
    assert ratios[0] > 0.9 and ratios[-2] < 1.1, "all but one within a tenth"
    assert ratios[-1] < 1.25


def test_expected_speeds_of_mixtures_are_near_those_published_for_a_radeon() -> None:
    for model, published in machines.PUBLISHED_MIXTURES:
        assert machines.expected(model, 800) == pytest.approx(published, rel=0.1)


def test_a_mixture_spills_experts_only_and_stays_fast() -> None:
    made = runs("RTX 3060", "Qwen3-30B-A3B")
    host = {name for parts in made.matrices.values() for p in parts if p.tier is Tier.HOST for name in p.stack.tensors}
    assert host - {"token_embd.weight"} and all("exps" in name for name in host - {"token_embd.weight"})
    assert made.tokens_per_s > 10 * runs("RTX 3060", "CodeLlama 34B").tokens_per_s
    assert isinstance(planned(machine("Deck 16 GB, 1 GiB"), MODELS["gpt-oss-20b"]), OutOfDeviceMemory)
    assert runs("780M", "gpt-oss-20b").tokens_per_s > runs("780M", "Llama-2 7B").tokens_per_s


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_script_writes() -> None:
    assert machines.PAGE.read_text(encoding="utf-8") == machines.page(), "run python scripts/machines.py"


def test_the_page_says_of_each_machine_and_model_whether_it_runs() -> None:
    text = machines.PAGE.read_text(encoding="utf-8")
    for name in BY_NAME:
        (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", text, re.MULTILINE)
        cells = row.split("|")
        assert len(cells) == len(MODELS)
        for cell, model in zip(cells, MODELS.values(), strict=True):
            fits = isinstance(planned(BY_NAME[name], model), MemoryPlan)
            assert fits == bool(re.match(r" \d", cell)), f"{name}: {cell}"
