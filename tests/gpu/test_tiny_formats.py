"""A tiny model of random blocks of each format against llama.cpp: log-probabilities at all positions, greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from kernel_case import poisoned

from vkllm.formats.gguf import ModelFile, main_format
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.buffers import HEAD_ROWS
from vkllm.gpu.program.kernels import KERNELS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import Row
from vkllm.model.architectures import model_spec

pytestmark = pytest.mark.gpu

FOLDER = Path(__file__).parents[3] / "shared" / "tiny"
BOUND = 0.02
"""Of a log-probability: activations and cached keys and values have fewer bits here than in the reference."""

FILES = sorted(FOLDER.glob("quant-*.gguf"))
NOT_YET = {"NVFP4"}


@pytest.mark.parametrize("path", FILES or [FOLDER], ids=lambda path: path.stem)
def test_a_model_answers_as_llama_cpp_does(device: Device, path: Path) -> None:
    if not FILES:
        pytest.skip(f"{FOLDER} is not there")
    file = ModelFile.open(path)
    if main_format(file.tensors) in NOT_YET:
        pytest.skip("the format is not supported")
    wanted = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    spec = model_spec(file.metadata, file.tensors)
    program = Program(device, spec, path, file.tensors, wanted["n_ctx"])
    tokens = wanted["prompt_tokens"]
    step = program.submit([Row(token, i) for i, token in enumerate(tokens)], [0, 1], "logits", is_prompt=True)
    program.wait(step)
    errors = []
    for first in range(0, len(tokens), HEAD_ROWS):
        found = logprobs(rows_of(program, first))
        for row, top in zip(found, wanted["positions"][first : first + HEAD_ROWS], strict=True):
            errors += [abs(row[token] - value) for token, value in top]
    found = logprobs(program.logits(step))
    for position, entry in enumerate(wanted["greedy"], start=len(tokens)):
        errors += [abs(found[token] - value) for token, value in entry["top"]]
        assert np.argmax(found) == entry["token"], position
        found = logprobs(program.logits(program.submit([Row(entry["token"], position)], [0, 1], "logits")))
    print(f"{path.stem}: largest error {max(errors):.2g}")
    assert max(errors) < BOUND


def rows_of(program: Program, first: int) -> np.ndarray:
    """Logits of HEAD_ROWS rows of the last step."""
    dispatches, logits = program.head_of(first)
    n_words = HEAD_ROWS * program.spec.n_vocab
    target = poisoned(program.device, n_words)
    copy = program.device.dispatch(
        KERNELS["copy_words"], (logits, target), constants=(64,), groups=(4, 1), push=(n_words, 0)
    )
    program.device.run([*dispatches, copy])
    assert target.words is not None
    return target.words[:n_words].view(np.float32).reshape(HEAD_ROWS, -1).copy()


def logprobs(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
