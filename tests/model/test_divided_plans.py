"""Plans of the ranks of a model whose layers are divided: real parts, one room for all, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hybrid_models import HYBRIDS
from variant import write

from vkllm.errors import InvalidParameter
from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import model_spec
from vkllm.model.memory.limits import DeviceLimits, Speeds
from vkllm.model.memory.plan import PlanOptions
from vkllm.model.memory.ranks import Division, divide
from vkllm.model.memory.split_plan import Member
from vkllm.model.spec import NO_LAYER, ModelSpec

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from machines import llama, tensors

PLAIN = llama(6, 512, 1536, 8, 8, 2048)
WINDOWS = replace(
    PLAIN,
    layers=tuple(
        replace(layer, window=window) for layer, window in zip(PLAIN.layers, (0, 64, 0, 0, 0, 512), strict=True)
    ),
)


def divided(model: ModelSpec = PLAIN, n: int = 2, **asked: object) -> Division:
    limits = DeviceLimits(2**31, 2**32 - 1, speeds=Speeds(400e9))
    members = [Member(f"GPU {i}", limits, str(i)) for i in range(n)]
    options = PlanOptions(**{"split_mode": "layer"} | asked)  # type: ignore[arg-type]
    return divide(model, tensors(model, "Q4_0"), members, 1024, 512, 32, options)


def test_ranks_hold_neighbouring_layers_and_together_all() -> None:
    made = divided(n=3, tensor_split=(3, 2, 1))
    held = [[i for i, layer in enumerate(rank.spec.layers) if layer != NO_LAYER] for rank in made.ranks]
    assert [number for own in held for number in own] == list(range(6)) and len(held[0]) > len(held[2])
    assert [rank.spec.receives for rank in made.ranks] == [False, True, True]
    assert [rank.spec.sends for rank in made.ranks] == [True, True, False]
    outside = [{name for weights in rank.plan.matrices for name in weights if not name.startswith("blk.")}
               for rank in made.ranks]  # fmt: skip
    assert outside == [{"token_embd.weight"}, set(), {"output.weight"}]
    assert made.plan.weights_bytes == sum(rank.plan.weights_bytes for rank in made.ranks)


def test_all_ranks_have_room_for_the_longest_window_of_the_model() -> None:
    made = divided(WINDOWS, n_parallel=3)
    rooms = {(p.n_ctx, p.n_sequences, p.n_blocks, p.n_window_blocks) for p in (rank.plan for rank in made.ranks)}
    assert len(rooms) == 1
    ((_, n_sequences, n_blocks, n_window_blocks),) = rooms
    assert n_sequences == 3 and n_blocks >= 32 and n_window_blocks >= (512 + 512) // 32


def test_ranks_that_work_together_hold_parts_of_every_layer_and_take_the_time_of_the_slowest() -> None:
    made = divided(WINDOWS, n=2, split_mode="tensor", tensor_split=(3, 1), n_parallel=3)
    assert made.mode == "tensor" and [len(rank.vocabulary) for rank in made.ranks] == [24576, 7424]
    for rank, n_heads in zip(made.ranks, (6, 2), strict=True):
        assert rank.spec.layers[0].n_kv_heads == len(rank.cached.keys[0]) == n_heads
    plans = [rank.plan for rank in made.ranks]
    assert len({(p.n_ctx, p.n_sequences, p.n_blocks, p.n_window_blocks, p.n_state_slots) for p in plans}) == 1
    assert made.plan.weights_bytes == sum(plan.weights_bytes for plan in plans)
    between_s = made.splits.plans["tensor"].between_s
    assert made.plan.token_s(512) == pytest.approx(max(plan.token_s(512) for plan in plans) + between_s)
    alone = divided(PLAIN, n=1, split_mode="none")
    assert between_s > 0 and made.plan.weights_bytes > alone.plan.weights_bytes, "the embedding is on each"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 7}, "at most 6 devices, not 7"),
        ({"spec": "mtp"}, r"spec \(--spec\) mtp drafts on one device only, not on several; choose auto"),
    ],
)
def test_what_cannot_be_divided_is_told(asked: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        divided(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["layer", "tensor"])
def test_a_head_for_further_tokens_stays_unused_on_several_devices(tmp_path: Path, mode: str) -> None:
    file = ModelFile.open(write(tmp_path / "m.gguf", HYBRIDS["qwen35 that predicts with a head of its own"]))
    spec = model_spec(file.metadata, file.tensors)
    assert spec.predictors
    limits = DeviceLimits(2**31, 2**32 - 1, speeds=Speeds(400e9))
    devices = [Member(f"GPU {i}", limits, str(i)) for i in range(2)]
    made = divide(spec, file.tensors, devices, 128, 512, 32, PlanOptions(split_mode=mode, spec="auto"))
    assert made.mode == mode and made.plan.n_predictors == 0
    for rank in made.ranks:
        assert not rank.spec.predictors and rank.plan.n_predictors == 0
        assert not any(name.startswith("blk.2.") for weights in rank.plan.matrices for name in weights)
