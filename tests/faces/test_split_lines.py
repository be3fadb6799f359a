"""`vkllm plan` of several devices: its lines, and the same for programs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vkllm import InvalidParameter, OutOfDeviceMemory, plan_model
from vkllm.faces.cli.plan import fields, lines
from vkllm.faces.cli.split_plan import split_fields, split_lines
from vkllm.formats.gguf import TensorInfo
from vkllm.gpu.device.probe import Heap, devices
from vkllm.model.architectures.llama import llama_spec
from vkllm.model.graph import expected_shapes
from vkllm.model.memory.limits import DeviceLimits, Speeds
from vkllm.model.memory.split_plan import Member, SplitPlans, plan_splits
from vkllm.model.memory.step_time import ExchangeSpeed

MIB = 2**20


def plans(*, can_exchange: bool = True, mib: int = 400) -> SplitPlans:
    """A model of 8 layers, 300 MiB, on two cards; the cache of 512 tokens takes 16 MiB."""
    spec = llama_spec(
        n_layers=8, n_heads=16, n_kv_heads=16, head_dim=64, d_model=1024, d_ff=4096, n_vocab=32000, n_ctx_train=512
    )
    tensors = {
        name: TensorInfo(name, shape, "Q8_0" if len(shape) > 1 else "F32", 0, 0)
        for name, shape in expected_shapes(spec).items()
    }
    limits = DeviceLimits(mib * MIB, 2**32 - 1, speeds=Speeds(10e9, is_measured=True))
    cards = [Member("Card", limits, "a"), Member("Card", replace(limits), "b", can_exchange)]
    speed = ExchangeSpeed(4e-6, 20e9, is_measured=True)
    return plan_splits(spec, tensors, cards, 512, 64, 8, speed=speed)


def test_lines_say_what_each_rank_holds_and_what_is_taken() -> None:
    text = split_lines(plans(), "tensor")
    assert " ".join(text[0].split()) == "split device holds weights cache working free tok/s half full"
    ranks = [" ".join(line[:15].split()) for line in text[1:6]]
    assert ranks == ["none 0 Card", "layer 0 Card", "1 Card", "tensor 0 Card", "1 Card"]
    assert "layers 0 to 3" in text[2] and "layers 4 to 7" in text[3]
    assert "50 % of the matrices" in text[4] and "50 % of the matrices" in text[5]
    assert text[1].count("MiB") == 4 and text[1].split()[-2:] != text[2].split()[-2:]
    assert "taken     tensor: it is expected to be 1.9 times as fast as none" in text
    assert "reading   Card 10 GB/s (measured)" in text
    assert text[-1].startswith("exchange  ") and text[-1].endswith("us, over 20 GB/s (measured)")
    assert "17 exchanges" in text[-1], "two a layer, and one of candidates"
    assert "taken     layer, as asked for" in split_lines(plans(), "layer", is_asked=True)


def test_lines_say_what_is_impossible() -> None:
    text = split_lines(plans(can_exchange=False, mib=180), "layer")
    (impossible,) = (line for line in text if line.startswith("tensor    impossible: "))
    assert "the driver of Card has no VK_EXT_external_memory_host" in impossible
    (none,) = (line for line in text if line.startswith("none      impossible: "))
    assert "MiB are missing" in none
    assert "taken     layer: no simpler way fits" in text and not any(line.startswith("exchange") for line in text)


def test_fields_are_the_same_for_programs() -> None:
    made = plans()
    found = json.loads(json.dumps(split_fields(made)))
    assert found["chosen"] == "tensor" and list(found["modes"]) == ["none", "layer", "tensor"]
    layer = found["modes"]["layer"]["ranks"]
    assert [(rank["device"], rank["first_layer"], rank["n_layers"]) for rank in layer] == [(0, 0, 4), (1, 4, 4)]
    assert found["modes"]["tensor"]["tokens_per_s"] == made.plans["tensor"].tokens_per_s
    assert found["refusals"] == {} and found["devices"][1]["is_measured"]


# --- The command and `plan_model`, on two cards that nobody measured --------------------------------------------------


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes the machine have two cards with so many bytes of their own, and of system memory."""

    def make(own_bytes: int, system_bytes: int) -> None:
        heaps = (Heap(own_bytes, None, True), Heap(system_bytes, None, False))
        cards = [
            replace(each, index=index, type="discrete", name=f"Card {index}", heaps=heaps)
            for index in range(2)
            for each in devices()[:1]
        ]
        monkeypatch.setattr("vkllm.api.planning.devices", lambda: cards)

    return make


@pytest.mark.gpu
def test_a_plan_for_one_card_says_what_all_would_bring(two_cards: Callable[[int, int], None], tiny_gguf: Path) -> None:
    two_cards(64 * MIB, 256 * MIB)
    made = plan_model(tiny_gguf, n_ctx=128, measures=False)
    assert made.device_name == "Card 0" and made.division is None and made.other_devices == ("0", "1")
    assert lines(made, "tiny")[-1] == "several   -dev 0,1 brings nothing: no split is expected to be faster"
    assert fields(made)["split"]["taken"] == "none"
    asked = plan_model(tiny_gguf, n_ctx=128, measures=False, device=0)
    assert asked.others is None and "split" not in fields(asked)


@pytest.mark.gpu
def test_what_fits_only_on_all_cards_is_refused_with_their_names(
    two_cards: Callable[[int, int], None], tiny_gguf: Path
) -> None:
    two_cards(64 * MIB, 256 * MIB)
    whole = plan_model(tiny_gguf, n_ctx=128, measures=False, device=0).plan
    two_cards(whole.total_bytes * 9 // 10, 0)
    with pytest.raises(OutOfDeviceMemory, match=r"are missing; .*; or -dev 0,1, which splits the model \(\w+\)$"):
        plan_model(tiny_gguf, n_ctx=128, measures=False)


@pytest.mark.gpu
def test_a_plan_for_named_cards_is_the_table(two_cards: Callable[[int, int], None], tiny_gguf: Path) -> None:
    two_cards(64 * MIB, 256 * MIB)
    made = plan_model(tiny_gguf, n_ctx=128, measures=False, device="0,1")
    text = lines(made, "tiny")
    assert text[0].endswith(" on Card 0") and text[3].startswith("split")
    assert "taken     none: no split is expected to be faster" in text
    split = json.loads(json.dumps(fields(made)))["split"]
    assert split["taken"] == "none" and [device["name"] for device in split["devices"]] == ["Card 0", "Card 1"]
    assert fields(made)["tokens_per_s"] == split["modes"]["none"]["tokens_per_s"]
    with pytest.raises(InvalidParameter, match=r"at most 1 device, not 2; .*; -sm none or -sm tensor would work"):
        plan_model(tiny_gguf, n_ctx=128, measures=False, device="0,1", split_mode="layer")
