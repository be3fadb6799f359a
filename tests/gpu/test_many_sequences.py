"""Steps of rows of several sequences: each row's logits are those that its sequence has alone, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse
from model_specs import LAYER, of_layers
from random_model import engine_config, reference, write_random_model

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KV_BLOCK
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LOGITS, Part, Result
from vkllm.model.memory.plan import PlanOptions

pytestmark = pytest.mark.gpu

SPEC = of_layers(replace(LAYER, window=40), LAYER, replace(LAYER, chunk=64))
N_CTX, BOUND = 160, 8e-6  # keys and values as float16 (see test_program.py)
STEPS = [(33, 12, 1), (3, 1, 2), (1, 20, 1), (2, 1, 1), (0, 1, 7), (1, 0, 1), (1, 1, 0)]
"""Rows of each sequence in each step: prompts, ends of prompts and single tokens, side by side."""


def test_rows_of_sequences_do_not_depend_on_their_neighbours(device: Device, tmp_path: Path) -> None:
    config = engine_config(write_random_model(tmp_path / "model.gguf", SPEC, {"ffn_up": "Q8_0"}), SPEC, N_CTX)
    program = Program(device, SPEC, config.path, config.tensors, N_CTX, options=PlanOptions(n_parallel=4))
    assert (program.n_sequences, program.plan.n_blocks) == (4, 20)
    rng = np.random.default_rng(1)
    lengths = [sum(rows[i] for rows in STEPS) for i in range(3)]
    texts = [rng.integers(0, SPEC.n_vocab, n).tolist() for n in lengths]
    blocks = rng.permutation(20)[:15].reshape(3, 5).tolist()
    window_blocks = rng.permutation(program.plan.n_window_blocks)[:15].reshape(3, 5).tolist()

    def part(i: int, start: int, n: int) -> Part:
        held = -(-(start + n) // KV_BLOCK)
        others = window_blocks[(i + 1) % 3]  # what is behind the window may be another's
        seen = [own if j >= (start - 39) // KV_BLOCK else others[j] for j, own in enumerate(window_blocks[i])]
        results = [Result(wants_logits=True)] * n if n <= 8 else LOGITS
        return Part(i, texts[i][start : start + n], start, blocks[i][:held], seen[:held], results=results)

    def logits(parts: list[Part]) -> list[np.ndarray]:
        step = program.submit(parts, is_prompt=True)
        return [program.logits(step, i) for i in range(sum(len(part.results) for part in parts))]

    together: list[list[np.ndarray]] = [[], [], []]
    starts = [0, 0, 0]
    for rows in STEPS:
        parts = [part(i, starts[i], n) for i, n in enumerate(rows) if n]
        # one that is wide runs alone
        steps = [[each] for each in parts] if max(rows) > 32 else [parts]
        for step in steps:
            found = iter(logits(step))
            for each in step:
                together[each.sequence] += [next(found) for _ in each.results]
        starts = [start + n for start, n in zip(starts, rows, strict=True)]
    for i, wanted in enumerate(reference(config).run(text) for text in texts):
        alone, start, checked = [], 0, []
        for rows in STEPS:
            if n := rows[i]:
                one = part(i, start, n)
                alone += logits([one])
                start += n
                checked += range(start - len(one.results), start)
        assert all(np.array_equal(a, b) for a, b in zip(alone, together[i], strict=True))
        assert max(nmse(a, wanted[row]) for a, row in zip(alone, checked, strict=True)) < BOUND
