"""Models on several devices: opened, asked and compared with what they give on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse

from vkllm.engine.load_times import LoadTimes
from vkllm.engine.opening import opened
from vkllm.engine.requests import EngineConfig
from vkllm.formats.gguf import ModelFile
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.group import ProgramGroup
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LIKELIEST, LOGITS, Draw, Part, Result
from vkllm.model.architectures import model_spec
from vkllm.model.memory.plan import PlanOptions

TINY = Path(__file__).parents[3] / "shared" / "tiny"

BOUND = 1e-7
"""Sums over ranks are rounded in another order than sums over columns, and keys and values to float16 after that."""

WIDE_BOUND = 5e-7
"""In the wide step that comes first, what ranks hand over is rounded to 2^-14 of the largest of eight numbers. That of
smollm3 amplifies this most, in numpy too: 1e-7 and 2e-7 on three and four devices, and 7e-7 on two."""

Q8_0_BOUND = 1e-4
"""The least difference changes which of 255 values a number is rounded to."""


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


@dataclass(frozen=True)
class OnOne:
    """What a model gives on one device, and the bytes of its weights there."""

    answers: list[list[np.ndarray] | list[int]]
    n_bytes: int


def on_one(device: Device, config: EngineConfig, cached: str = "f16") -> OnOne:
    with program(device, config, 1, cached=cached) as one:
        return OnOne(answers(one, config.spec.n_vocab), one.plan.weights_bytes)


def check_layers(device: Device, config: EngineConfig, n_devices: int, wanted: OnOne) -> None:
    """The same kernels run in the same order."""
    with program(device, config, n_devices) as several:
        assert isinstance(several, ProgramGroup) and len(several.ranks) == n_devices
        found = answers(several, config.spec.n_vocab)
    for a, b in zip(found, wanted.answers, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def check_tensors(
    device: Device, config: EngineConfig, n_devices: int, wanted: OnOne | None = None, cached: str = "f16"
) -> None:
    """All devices hold less than one does."""
    wanted = wanted or on_one(device, config, cached)
    n_vocab = config.spec.n_vocab
    with program(device, config, n_devices, "tensor", cached) as several:
        assert isinstance(several, ProgramGroup) and several.n_in_turn == 1
        assert all(rank.plan.weights_bytes < wanted.n_bytes and rank._n_sums > 0 for rank in several.ranks)
        found = answers(several, n_vocab)
        assert several.heads == several.ranks[: n_devices if n_vocab > 32 else 1]
    assert len(several.ranks) == n_devices
    for step, (a, b) in enumerate(zip(found, wanted.answers, strict=True)):
        bound = Q8_0_BOUND if cached == "q8_0" else BOUND if step else WIDE_BOUND
        for x, y in zip(a, b, strict=True):
            assert x == y if isinstance(x, int) else nmse(x, y) < bound
