"""Models whose layers lie on several devices, here one named more than once, compute what they do on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse
from model_specs import KINDS_OF_LAYERS, LAYER, TINY_SPEC, of_layers
from random_model import engine_config, write_random_model

from vkllm.engine.load_times import LoadTimes
from vkllm.engine.opening import opened
from vkllm.engine.requests import EngineConfig
from vkllm.errors import DeviceLost
from vkllm.formats.gguf import ModelFile
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.cached_blocks import CachedBlocks, CachePlace
from vkllm.gpu.program.group import ProgramGroup
from vkllm.gpu.program.hidden_states import HiddenStates
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.scoring import Scorer
from vkllm.gpu.program.step import LIKELIEST, LOGITS, Draw, Part, Result
from vkllm.model.architectures import model_spec
from vkllm.model.memory.plan import PlanOptions

pytestmark = pytest.mark.gpu

TINY = Path(__file__).parents[3] / "shared" / "tiny"
FILES = {"llama": 2, "qwen3moe": 2, "gemma3": 3, "qwen3next": 3}
"""Files by name, and over how many devices they are split; with --all, all others that have layers for two."""

FORMATS = ("quant-q4_0", "quant-mxfp4", "quant-nvfp4")
"""Of the small models that differ by a format only, those that are split."""

NAMES = sorted(path.stem for path in TINY.glob("*.gguf") if "quant-" not in path.stem or path.stem in FORMATS)
OTHERS = [
    pytest.param(name, 2, marks=pytest.mark.with_all)
    for name in NAMES
    if name not in {*FILES, *FORMATS, "gemma4-ple"}  # later layers of that one read the cache of the first
]

N_CTX = 128


def config_of(name: str) -> EngineConfig:
    """A small model's file, for the engine."""
    path = TINY / f"{name}.gguf"
    if not path.exists():
        pytest.skip("needs the small models beside the checkout")
    file = ModelFile.open(path)
    return EngineConfig(path, file.tensors, model_spec(file.metadata, file.tensors), N_CTX)


@contextmanager
def program(
    device: Device, config: EngineConfig, n_devices: int, mode: str = "layer", cached: str = "f16"
) -> Iterator[Program | ProgramGroup]:
    names = (str(device.info.index),) * n_devices
    options = PlanOptions(n_parallel=2, devices=names, split_mode=mode, type_k=cached, type_v=cached)
    with closing(opened(replace(config, options=options), lambda n_bytes: None, LoadTimes())) as made:
        yield made.program


def answers(program: Program | ProgramGroup, n_vocab: int) -> list[list[np.ndarray] | list[int]]:
    """Logits of a prompt in two chunks, tokens of two sequences side by side, logits of a narrow step."""
    tokens = np.random.default_rng(1).integers(0, n_vocab, 70).tolist()
    window = program.window
    first = list(range(4))
    places = [(first, first), (list(range(4, 8)), list(range(4, 8)))]
    if window:  # blocks of the window are fewer
        n = program.plan.n_window_blocks // 2
        places = [(all_blocks, [n * i + j % n for j in range(4)]) for i, (all_blocks, _) in enumerate(places)]
    slots = [0, 1] if program.states else [None, None]

    def part(sequence: int, tokens: list[int | None], position: int, results: tuple[Result, ...], slot: int) -> Part:
        blocks, window_blocks = places[sequence]
        n = -(-(position + len(tokens)) // 32)
        before = None if position == 0 or slots[0] is None else 2 * sequence + (slot + 1) % 2
        stored = {} if slots[0] is None else {len(tokens) - 1: 2 * sequence + slot % 2}
        return Part(sequence, tokens, position, blocks[:n], window_blocks[:n], before, stored, results)

    found: list[list[np.ndarray] | list[int]] = []
    for sequence, length in enumerate((66, 9)):
        program.submit([part(sequence, tokens[:5], 0, (), 0)], is_prompt=True)
        step = program.submit([part(sequence, tokens[5:length], 5, LOGITS, 1)], is_prompt=True)
        found.append([program.logits(step)])
    drawn = (Result(Draw(40, 2**32 - 1, 0, 1.0, 2**31 + 12345)),)
    steps = [program.submit([part(0, tokens[66:67], 66, LIKELIEST, 2), part(1, tokens[9:10], 9, drawn, 2)])]
    for i in range(1, 3):  # which run ahead
        chosen = [part(0, [None], 66 + i, LIKELIEST, 2 + i), part(1, [None], 9 + i, drawn, 2 + i)]
        steps.append(program.submit(chosen))
    found += [program.tokens(step) for step in steps]
    found.append(program.tokens(program.submit([part(0, [None], 69, LIKELIEST, 5)])))
    step = program.submit([part(1, tokens[12:13], 12, LOGITS, 5)])
    return [*found, [program.logits(step)]]


@pytest.mark.parametrize(("name", "n_devices"), [*FILES.items(), *OTHERS])
def test_layers_on_several_devices_give_what_one_device_gives(device: Device, name: str, n_devices: int) -> None:
    config = config_of(name)
    with program(device, config, 1) as one:
        wanted = answers(one, config.spec.n_vocab)
    with program(device, config, n_devices) as several:
        assert isinstance(several, ProgramGroup) and len(several.ranks) == n_devices
        found = answers(several, config.spec.n_vocab)
    for a, b in zip(found, wanted, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)), "the same kernels run in the same order"


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
