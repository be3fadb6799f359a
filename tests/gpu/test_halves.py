"""Steps of many rows in two halves, one computed while the sums over ranks of the other travel: in which order, and
that results have the bits of whole steps, here on devices that are one named more than once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_specs import HYBRID_SPEC, LAYER, of_layers
from random_model import engine_config, write_random_model
from test_layer_split import program

from vkllm.engine import opening
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program import halved_program
from vkllm.gpu.program.exchange import Exchange
from vkllm.gpu.program.group import ProgramGroup
from vkllm.gpu.program.halved_program import HalvedProgram
from vkllm.gpu.program.halves import Stage, interleaved, stages_of
from vkllm.gpu.program.kernels import KERNELS
from vkllm.gpu.program.step import LOGITS, Part
from vkllm.model.spec import Experts, ModelSpec

N_CTX = 320

WINDOW = replace(LAYER, window=40, post_attention_norm="post_attention_norm", post_ffn_norm="post_ffw_norm")
MIXTURE = replace(LAYER, d_ff=0, experts=Experts(8, 2, 64, d_ff_shared=32, has_shared_gate=True))
SPECS: dict[str, tuple[ModelSpec, int]] = {
    "llama": (of_layers(LAYER, LAYER), 2),
    "windows": (of_layers(WINDOW), 3),
    "experts": (of_layers(MIXTURE, LAYER), 2),
}
"""Models by what their layers have, and over how many devices they are split."""


class _Stage(Stage):
    """One without dispatches."""

    def __init__(self, name: str) -> None:
        super().__init__((), is_whole=name == "whole")
        self.__dict__["name"] = name

    @property
    def is_sum(self) -> bool:
        return self.__dict__["name"] == "sum"

    @property
    def is_busy(self) -> bool:
        return self.__dict__["name"] == "product"


def orders(names: Sequence[str]) -> list[list[tuple[int, int, str]]]:
    """The groups of two halves with such stages: (half, number of the stage, its name) each."""
    halves = [[_Stage(name) for name in names] for _ in range(2)]
    for i, name in enumerate(names):
        if name == "whole":
            halves[1][i] = halves[0][i]
    places = {id(stage): (h, i, names[i]) for h in (1, 0) for i, stage in enumerate(halves[h])}
    return [[places[id(stage)] for stage in group] for group in interleaved(*halves)]


def test_sums_of_a_dense_layer_travel_beside_products_of_the_other_half() -> None:
    attention, feed_forward = "light product light product product sum", "light product light product sum"
    names = f"{attention} {feed_forward} ".split() * 4
    groups = orders(names)
    beside = [[name for _, _, name in group] for group in groups if any(name == "sum" for _, _, name in group)]
    assert len(beside) == 16
    assert beside[:-1] == [["sum", "product"]] * 15, "only the last sum has nothing beside it"
    assert len(groups) <= 4 * 12 + 5, "a layer has one group more than stages"


@given(st.lists(st.sampled_from(["light", "product", "sum", "whole"]), max_size=30))
@settings(max_examples=300, deadline=None)
def test_halves_keep_their_order_and_sums_take_turns(names: list[str]) -> None:
    groups = orders(names)
    when: dict[tuple[int, int], int] = {}
    for number, group in enumerate(groups):
        assert len(group) == 1 or {half for half, _, _ in group} == {0, 1}
        assert [name for _, _, name in group].count("sum") <= 1 and (len(group) == 1 or group[1][2] != "sum")
        if len(group) == 2 and group[0][2] != "sum":
            assert group[0][1] - group[1][1] >= 2, "what the second half caches is not read meanwhile"
        for half, i, name in group:
            assert (half, i) not in when and (name != "whole" or len(group) == 1)
            when[half, i] = number
            if name == "whole":
                when[1, i] = number
    assert sorted(when) == [(half, i) for half in (0, 1) for i in range(len(names))]
    for half in (0, 1):
        assert all(when[half, i] < when[half, i + 1] for i in range(len(names) - 1))
    assert all(when[0, i] < when[1, i + 1] for i in range(len(names) - 1)), "what the first half caches is read there"
    sums = [(half, i) for group in groups for half, i, name in group if name == "sum"]
    assert sums == [(half, i) for i, name in enumerate(names) if name == "sum" for half in (0, 1)]


@pytest.fixture
def needs_shared_memory(device: Device) -> None:
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")


def answers(made: ProgramGroup, cuts: Sequence[int]) -> list[np.ndarray]:
    """Logits behind each chunk of a prompt of random tokens, and behind a token after it, which reads the cache."""
    tokens = np.random.default_rng(1).integers(0, made.spec.n_vocab, sum(cuts) + 1).tolist()
    found, start = [], 0
    for n in (*cuts, 1):
        blocks = list(range(-(-(start + n) // 32)))
        step = made.submit([Part(0, tokens[start : start + n], start, blocks, results=LOGITS)], is_prompt=n > 1)
        found.append(made.logits(step))
        start += n
    return found


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_shared_memory")
@pytest.mark.parametrize(("name", "cuts"), [("llama", (257, 40)), ("windows", (160,)), ("experts", (150, 128))])
def test_halves_give_the_bits_of_whole_steps(
    device: Device, name: str, cuts: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three devices, with all sums in two phases; of 257 rows, with one in the second half; 128 rows are not cut."""
    spec, n_devices = SPECS[name]
    monkeypatch.setattr(opening, "Exchange", partial(Exchange, saved_fours=0 if n_devices == 3 else 10**9))
    formats = {"attn_output": "Q8_0", "ffn_down": "Q4_0", "ffn_down_exps": "Q4_0"}
    config = engine_config(write_random_model(tmp_path / "model.gguf", spec, formats), spec, N_CTX)
    found: list[list[np.ndarray]] = []
    n_exchanges: list[int] = []
    with program(device, replace(config, overlaps=True), n_devices, "tensor") as several:
        assert isinstance(several, ProgramGroup)
        ranks: list[Any] = several.ranks
        for least in (256, 1024):
            monkeypatch.setattr(halved_program, "LEAST_WIDTH", least)
            before = ranks[0]._n_exchanges
            found.append(answers(several, cuts))
            n_exchanges.append(ranks[0]._n_exchanges - before)
            several.settle()
    halved = sum(n > 128 for n in cuts) * 2 * spec.n_layers
    assert n_exchanges[0] == n_exchanges[1] + halved and ranks[0]._n_sums == 2 * spec.n_layers
    assert all(np.array_equal(halves, whole) for halves, whole in zip(*found, strict=True))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_shared_memory")
def test_experts_run_for_all_rows_and_a_model_with_states_is_left_whole(device: Device, tmp_path: Path) -> None:
    spec, _ = SPECS["experts"]
    config = engine_config(write_random_model(tmp_path / "experts.gguf", spec, {}), spec, N_CTX)
    with program(device, replace(config, overlaps=True), 2, "tensor") as several:
        rank = several.ranks[0]
        assert isinstance(rank, HalvedProgram)
        dispatches = rank._halves.layers(256)
        names = [dispatch.kernel.name for dispatch in dispatches]
        assert names.count("attention") == names.count("embed") * spec.n_layers == 2 * spec.n_layers
        assert names.count("expert_tiles") == 1 and names.count("all_reduce") == 4 * spec.n_layers
        for stage in stages_of(dispatches):
            kernels = [dispatch.kernel.name for dispatch in stage.dispatches]
            assert kernels.count("all_reduce") <= 1 and ("all_reduce" not in kernels or kernels[0] == "all_reduce")
        widths = {dispatch.groups[1] for dispatch in dispatches if dispatch.kernel.name == "norm"}
        assert widths == {128, 256}
    config = engine_config(write_random_model(tmp_path / "hybrid.gguf", HYBRID_SPEC, {}), HYBRID_SPEC, N_CTX)
    with program(device, replace(config, overlaps=True), 2, "tensor") as several:
        assert not any(isinstance(rank, HalvedProgram) for rank in several.ranks)


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_shared_memory")
def test_without_the_switch_no_step_is_cut(device: Device, tmp_path: Path) -> None:
    spec = of_layers(LAYER)
    config = engine_config(write_random_model(tmp_path / "model.gguf", spec, {}), spec, N_CTX)
    with program(device, config, 2, "tensor") as several:
        assert not any(isinstance(rank, HalvedProgram) for rank in several.ranks)


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_shared_memory")
def test_halves_share_no_row_of_an_activation_and_no_part_of_a_product(device: Device, tmp_path: Path) -> None:
    spec = of_layers(LAYER)
    config = engine_config(write_random_model(tmp_path / "model.gguf", spec, {"ffn_down": "Q4_0"}), spec, N_CTX)
    with program(device, config, 2, "tensor") as several:
        one = several.ranks[0].device
        buffers: Any = several.ranks[0]._buffers
        room = buffers.room_for_parts(4 * 512 * 16)
        halves = [buffers.of_rows(first, 128) for first in (0, 128)]
        assert halves[0].activations.keys() == buffers.activations.keys() - {"final", "logits"}
        for name, whole in buffers.activations.items():
            for kind in ("values", "q16", "scales"):
                if name in halves[0].activations and getattr(whole, kind) is not None:
                    parts = [getattr(half.activations[name], kind) for half in halves]
                    assert written_behind_each_other(one, getattr(whole, kind), parts), (name, kind)
        parts = [half.room_for_parts(10**9) for half in halves]
        assert written_behind_each_other(one, room, parts)


def written_behind_each_other(device: Device, whole: Buffer, parts: Sequence[Buffer]) -> bool:
    """Whether what is written into each part is in the whole, without a gap."""
    words = [np.arange(1, part.n_words + 1, dtype=np.uint32) * (3 + i) for i, part in enumerate(parts)]
    for part, values in zip(parts, words, strict=True):
        source = device.buffer(part.n_words, tier="host")
        assert source.words is not None
        source.words[:] = values
        copy(device, source, part)
    target = device.buffer(whole.n_words, tier="readback")
    copy(device, whole, target)
    expected = np.concatenate(words)
    assert target.words is not None
    return np.array_equal(target.words[: len(expected)], expected)


def copy(device: Device, source: Buffer, target: Buffer) -> None:
    n_words = min(source.n_words, target.n_words)
    push = (n_words, 0, 0)
    device.run([device.dispatch(KERNELS["copy_words"], (source, target), constants=(64,), groups=(16, 1), push=push)])
