"""Models whose layers lie on several devices, here one named more than once, compute what they do on one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse
from model_specs import KINDS_OF_LAYERS, LAYER, TINY_SPEC, of_layers
from random_model import engine_config, write_random_model
from split_models import N_CTX, program

from vkllm.errors import DeviceLost
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.cached_blocks import CachedBlocks, CachePlace
from vkllm.gpu.program.group import ProgramGroup
from vkllm.gpu.program.hidden_states import HiddenStates
from vkllm.gpu.program.scoring import Scorer
from vkllm.gpu.program.step import LIKELIEST, LOGITS, Part, Result

pytestmark = pytest.mark.gpu


def test_embeddings_for_each_layer_are_computed_on_each_device(device: Device, tmp_path: Path) -> None:
    first, reader, *_ = KINDS_OF_LAYERS["gemma4"].layers
    layers = (first, reader, first, replace(reader, cache_layer=2))
    spec = replace(KINDS_OF_LAYERS["gemma4"], layers=layers)
    config = engine_config(write_random_model(tmp_path / "model.gguf", spec, {}), spec, N_CTX)
    found = []
    for n_devices in (1, 2):
        with program(device, config, n_devices) as made:
            found.append(made.logits(made.submit([Part(0, [3, 1, 4], 0, [0], [0], results=LOGITS)])))
    assert nmse(found[1], found[0]) < 1e-10, "workgroups suit the heads of the layers that a device has"


@pytest.fixture
def split(device: Device, tmp_path: Path) -> Iterator[ProgramGroup]:
    """A model of three layers, of which one has a window, over three devices."""
    spec = of_layers(LAYER, replace(LAYER, window=40), LAYER)
    config = engine_config(write_random_model(tmp_path / "model.gguf", spec, {}), spec, N_CTX)
    with program(device, config, 3) as made:
        assert isinstance(made, ProgramGroup)
        yield made


def test_rows_are_scored_and_cached_blocks_move_on_every_device(split: ProgramGroup) -> None:
    prompt = np.random.default_rng(2).integers(0, TINY_SPEC.n_vocab, 41).tolist()
    every = (Result(wants_logits=True),) * 3
    step = split.submit([Part(0, prompt[:3], 0, [0, 1], [0, 1], results=every)], is_prompt=True)
    logits = np.array([split.logits(step, i) for i in range(3)], np.float64)
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    (last,) = split.heads
    assert Scorer([last]).score(0, [7, 8, 9]) == pytest.approx(expected[[0, 1, 2], [7, 8, 9]], abs=1e-4)
    assert HiddenStates(last).rows(0, 3).shape == (3, TINY_SPEC.d_model)

    def logits_behind() -> np.ndarray:
        return split.logits(split.submit([Part(0, prompt[40:], 40, [0, 1], [0, 1], results=LOGITS)]))

    split.submit([Part(0, prompt[:40], 0, [0, 1], [0, 1])], is_prompt=True)
    blocks = CachedBlocks(split, 40, CachePlace([0, 1], [0, 1]))
    assert blocks.names == [f"{part}.{layer}" for layer in range(3) for part in ("keys", "values")]
    kept = {name: blocks.read(name).copy() for name in blocks.names}
    wanted = logits_behind()
    split.submit([Part(0, prompt[:40][::-1], 0, [0, 1], [0, 1])], is_prompt=True)
    assert not np.array_equal(logits_behind(), wanted)
    for name, words in kept.items():
        blocks = CachedBlocks(split, 40, CachePlace([0, 1], [0, 1]))
        blocks.write(name, lambda target, words=words: np.copyto(target, words))  # type: ignore[misc]
    assert np.array_equal(logits_behind(), wanted)


def test_a_device_that_is_lost_is_named_and_ends_all_later_steps(
    split: ProgramGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = split.submit([Part(0, [1], 0, [0], [0], results=LIKELIEST)])
    assert len(split.tokens(first)) == 1

    def lost(*_: object, **__: object) -> None:
        raise DeviceLost("it fell off the bus")

    monkeypatch.setattr(split.ranks[1], "submit", lost)
    steps = [split.submit([Part(0, [None], i, [0], [0], results=LIKELIEST)]) for i in (1, 2)]
    with pytest.raises(DeviceLost):
        split.wait(steps[0])
    monkeypatch.undo()
    steps.append(split.submit([Part(1, [5], 0, [1], [1], results=LIKELIEST)]))
    for step in steps:
        with pytest.raises(DeviceLost, match=r".* \(device 2 of 3\): it fell off the bus"):
            split.tokens(step)
