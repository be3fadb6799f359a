"""Heads that predict further tokens (nextn.* tensors) on a device, against the numpy reference."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

from file_reference import file_reference
from hybrid_models import HYBRIDS
from kernel_case import nmse
from variant import write

from vkllm.formats.gguf import ModelFile
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KV_BLOCK
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LIKELIEST, LOGITS, N_SLOTS, Part
from vkllm.model.architectures import model_spec
from vkllm.model.memory.options import PlanOptions

pytestmark = pytest.mark.gpu

BOUND = 4e-6  # see test_kinds_of_layers.py

MODELS = {name: variant for name, variant in HYBRIDS.items() if "predicts" in name}


def predicted(path: Path, tokens: list[int], guessed: list[int]) -> list[np.ndarray]:
    """The logits of the reference's head behind tokens, and behind each further token that it reads of itself."""
    reference = file_reference(path, 256)
    (predictor,) = reference.spec.predictors
    hidden = reference.hidden_states(tokens)
    before = np.concatenate([np.zeros_like(hidden[:1]), hidden])
    all_logits = []
    for ids in ([*tokens, guessed[0]], *([token] for token in guessed[1:])):
        logits, before = reference.predict(predictor, before, ids)
        before = before[-1:]
        all_logits.append(logits[-1])
    return all_logits


@pytest.mark.parametrize("name", MODELS)
def test_what_a_head_predicts_is_what_the_reference_predicts(device: Device, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model.gguf", MODELS[name])
    file = ModelFile.open(path)
    spec = model_spec(file.metadata, file.tensors)
    program = Program(device, spec, path, file.tensors, 256, options=PlanOptions(spec="mtp", n_parallel=2))
    texts = [[int(t) for t in np.random.default_rng(i).integers(0, spec.n_vocab, 60)] for i in range(2)]
    tables = [[*range(2 * i, 2 * i + 2)] for i in range(2)]
    n_run, n_parts = [0, 0], [0, 0]
    before: list[int | None] = [None, None]

    def part(i: int, n: int) -> Part:
        start, n_run[i] = n_run[i], n_run[i] + n
        slots = [2 * i + (n_parts[i] + turn) % 2 for turn in (0, 1)]
        made = Part(i, texts[i][start : start + n], start, tables[i], row_before=before[i])
        if program.states:
            made = replace(made, state_slot=slots[0] if start else None, stored={n - 1: slots[1]})
        before[i], n_parts[i] = 0 if n > 32 else n - 1, n_parts[i] + 1
        return made

    def check(i: int, kept: int) -> None:
        """Guesses behind row `kept` of a sequence's last step, whatever came behind it."""
        n = n_run[i] - (before[i] or 0) + kept
        given, guessed = [texts[i][n], 7, 9], []
        for j, token in enumerate(given):
            row = Part(i, [token], n + j, tables[i], row_before=kept, results=LOGITS)
            guessed.append(program.logits(program.predict(row, goes_on=j > 0)))
        for got, wanted in zip(guessed, predicted(path, texts[i][:n], given), strict=True):
            assert nmse(got, wanted) < BOUND, (i, n)

    program.submit([part(0, 40)], is_prompt=True, is_read=True)
    check(0, 0)
    program.submit([part(0, 1), part(1, 5)], is_read=True)
    check(1, 4)
    program.submit([part(1, 1)], is_read=True)
    check(1, 0)
    program.submit([part(0, 4), part(1, 2)], is_read=True)
    check(0, 3)
    if not program.states:
        check(0, 1)

    position = n_run[0]
    last = Part(0, texts[0][position : position + 1], position, tables[0], results=LIKELIEST, row_before=before[0])
    guesses = [program.predict(last)]
    guesses.append(program.predict(Part(0, [None], position + 1, tables[0], results=LIKELIEST), goes_on=True))
    ids = [program.tokens(guess)[0] for guess in guesses]
    for got, wanted in zip(ids, predicted(path, texts[0][:position], [texts[0][position], ids[0]]), strict=True):
        assert wanted[got] > wanted.max() - 1e-3


@pytest.mark.parametrize("name", ["deepseek2 that predicts", "qwen35 that predicts with a head of its own"])
def test_the_plan_counts_what_a_head_takes_of_memory(device: Device, tmp_path: Path, name: str) -> None:
    """Its weights and cache, and the rows of each sequence that it reads again. Tables of blocks in the slots of steps
    are left to the margin of plans."""
    path = write(tmp_path / "model.gguf", MODELS[name])
    file = ModelFile.open(path)
    spec = model_spec(file.metadata, file.tensors)

    def planned_and_taken(options: PlanOptions) -> tuple[int, int]:
        gc.collect()
        before = sum(heap.used_bytes for heap in device.memory())
        program = Program(device, spec, path, file.tensors, 256, options=options)
        gc.collect()
        return program.plan.total_bytes, sum(heap.used_bytes for heap in device.memory()) - before

    of_one = planned_and_taken(PlanOptions(spec="mtp", n_parallel=1))
    of_many = planned_and_taken(PlanOptions(spec="mtp", n_parallel=32))
    without = planned_and_taken(PlanOptions(spec="off", n_parallel=32))
    table_bytes = (N_SLOTS + 1) * 32 * 256 // KV_BLOCK * 4
    assert all(planned >= taken for planned, taken in (of_one, of_many, without))
    assert of_many[1] - of_one[1] <= of_many[0] - of_one[0] + table_bytes
    assert of_many[1] - without[1] <= of_many[0] - without[0]
    assert of_many[0] - of_one[0] <= of_many[1] - of_one[1], "no more than is taken"
