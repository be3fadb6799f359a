"""Caches that keep only a window: a context that uses its blocks several times, beside layers that see all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse
from model_specs import LAYER, of_layers
from random_model import engine_config, reference, write_random_model

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program import program as program_module
from vkllm.gpu.program.kernels import KV_BLOCK
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LOGITS, Part
from vkllm.model.memory.plan import PlanOptions

pytestmark = pytest.mark.gpu

# keys and values as float16 (see test_program.py), and the like again where matrices round activations; q8_0 rounds to
# 1/254 of a block's largest value
BOUND = {"f16": 8e-6, "q8_0": 4e-3}
SPEC = of_layers(replace(LAYER, window=40), LAYER, replace(LAYER, window=1))
N_PROMPT, N_DECODED, CHUNK = 400, 40, 64


@pytest.mark.parametrize("fmt", ["f16", "q8_0"])
def test_a_context_several_times_as_long_as_its_rings(
    device: Device, tmp_path: Path, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_module, "MAX_ROWS", CHUNK)  # no step has more rows here, so that few blocks are enough
    config = engine_config(write_random_model(tmp_path / "model.gguf", SPEC, {"ffn_up": "Q8_0"}), SPEC, 448)
    program = Program(device, SPEC, config.path, config.tensors, 448, options=PlanOptions(fmt, fmt, n_parallel=1))
    assert (program.window, program.plan.n_window_blocks, program.ring_tokens) == (40, 5, 5 * KV_BLOCK)
    assert [keys.n_words * 14 for keys, _ in program.caches] == [n * program.caches[1][0].n_words for n in (5, 14, 5)]
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, SPEC.n_vocab, N_PROMPT + N_DECODED)]
    wanted = reference(config).run(tokens)
    table = list(reversed(range(program.n_blocks)))
    for start in range(0, N_PROMPT, CHUNK):
        last = min(start + CHUNK, N_PROMPT) - 1
        part = Part(0, tokens[start : last + 1], start, table, results=LOGITS)
        step = program.submit([part], is_prompt=True)
        assert nmse(program.logits(step), wanted[last]) < BOUND[fmt], last
    for position in range(N_PROMPT, N_PROMPT + N_DECODED):
        step = program.submit([Part(0, [tokens[position]], position, table, results=LOGITS)])
        assert nmse(program.logits(step), wanted[position]) < BOUND[fmt], position
