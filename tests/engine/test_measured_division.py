"""How a model is divided when it is loaded follows from measured speeds, as in its plan."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vkllm import plan_model
from vkllm.api import planning
from vkllm.engine import opening
from vkllm.engine.requests import EngineConfig
from vkllm.formats.gguf import ModelFile
from vkllm.gpu.device import limits
from vkllm.gpu.device.probe import DeviceInfo, Heap
from vkllm.model.architectures import model_spec
from vkllm.model.memory.limits import Speeds
from vkllm.model.memory.plan import PlanOptions
from vkllm.model.memory.ranks import Division
from vkllm.model.memory.step_time import ExchangeSpeed

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from machines import llama, tensors

CARD = DeviceInfo(
    *(0, "A card", "discrete", 0, 0, "", "", (1, 3, 0)),
    heaps=(Heap(24 * 2**30, None, True), Heap(2**35, None, False)),
    max_binding_bytes=2**32 - 4,
    max_allocation_bytes=2**32 - 4,
    max_workgroup_invocations=1024,
    max_shared_bytes=2**15,
    subgroup_size=32,
    min_subgroup_size=32,
    max_subgroup_size=32,
    features=frozenset({"external_memory_host"}),
)
CARDS = [CARD, replace(CARD, index=1)]
SPEC = llama(32, 4096, 11008, 32, 32, 4096)
CONFIG = EngineConfig(Path("paper.gguf"), tensors(SPEC, "Q4_0"), SPEC, 1024)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured. The second card is five times as fast as the first; exchanges are as is assumed."""
    asked: list[str] = []

    def speeds(info: DeviceInfo) -> Speeds:
        asked.append("speeds")
        return Speeds((400e9, 2000e9)[info.index], 20e9, is_measured=True)

    def exchange(infos: list[DeviceInfo]) -> ExchangeSpeed:
        asked.append("exchange")
        return ExchangeSpeed()

    for module in (opening, planning):
        monkeypatch.setattr(module, "measured_speeds", speeds)
        monkeypatch.setattr(module, "measured_exchange", exchange)
    monkeypatch.setattr(planning, "devices", lambda: CARDS)
    monkeypatch.setattr(limits, "available_host_bytes", lambda: 2**34)
    return asked


def divided(**options: object) -> Division:
    return opening.divided(CONFIG, CARDS, PlanOptions(**options))  # type: ignore[arg-type]


def test_measured_speeds_decide_how_a_model_is_split(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = divided()
    assert made.mode == "none" and made.ranks[0].member == 1 and asked == ["speeds", "speeds", "exchange"]
    monkeypatch.setattr(opening, "measured_speeds", lambda info: Speeds(400e9, 20e9))
    assert divided().mode == "tensor"
    monkeypatch.setattr(opening, "measured_exchange", lambda infos: ExchangeSpeed(1e-3, is_measured=True))
    assert divided().mode == "none"


def test_only_what_the_division_depends_on_is_measured(asked: list[str]) -> None:
    parts = divided(split_mode="layer").splits.plans["layer"].parts
    assert parts[1] > 4 * parts[0] and asked == ["speeds", "speeds"]
    del asked[:]
    assert divided(split_mode="tensor", tensor_split=(1, 1)).mode == "tensor" and not asked


@pytest.mark.parametrize("mode", [None, "tensor"])
def test_a_plan_divides_a_model_as_loading_does(asked: list[str], tiny_gguf: Path, mode: str | None) -> None:
    file = ModelFile.open(tiny_gguf)
    config = EngineConfig(tiny_gguf, file.tensors, model_spec(file.metadata, file.tensors), 256)
    made = plan_model(tiny_gguf, device="0,1", split_mode=mode, n_ctx=256).division
    assert made is not None
    loaded = opening.divided(config, CARDS, PlanOptions(devices=("0", "1"), split_mode=mode))
    assert (made.mode, [rank.member for rank in made.ranks]) == (loaded.mode, [rank.member for rank in loaded.ranks])
    held = [[[info.n_bytes for info in rank.tensors.values()] for rank in each.ranks] for each in (made, loaded)]
    assert held[0] == held[1]
    assert [rank.plan for rank in made.ranks] == [rank.plan for rank in loaded.ranks]
