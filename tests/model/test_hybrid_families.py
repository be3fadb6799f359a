"""Families whose layers differ: small random models in numpy, against llama.cpp's answers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from file_reference import file_reference, log_softmax
from hybrid_models import HYBRIDS
from variant import write

TINY = Path(__file__).parents[3] / "shared" / "tiny"
ANSWERS = json.loads(Path(__file__).with_name("answers.json").read_text())
NAMES = (
    *("lfm2", "lfm2moe", "qwen35", "qwen35moe", "qwen3next", "granitehybrid", "nemotron_h", "nemotron_h_moe"),
    *("deepseek2", "deepseek2-groups", "deepseek2-flash", "mistral4", "gemma4", "gemma4-moe", "gemma4-ple"),
)
STEPS = (*range(6), 17, 18, 40)
"""Where a prompt is cut: into tokens one by one at first, then into chunks."""


def check(path: Path, answers: dict, tokens: list[int], rows: range | list[int], bound: float) -> None:
    model = file_reference(path, 256)
    logits = model.run(tokens)
    found = log_softmax(logits)
    for row, top in zip(rows, answers["positions"], strict=True):
        for token, logprob in top:
            assert found[row, token] == pytest.approx(logprob, abs=bound)
    token, greedy = int(logits[-1].argmax()), []
    for _ in answers["greedy"]:
        greedy.append(token)
        token = int(np.argmax(model.run([token])[-1]))
    assert greedy == [step if isinstance(step, int) else step["token"] for step in answers["greedy"]]
    in_parts = file_reference(path, 256)
    parts = [in_parts.run(tokens[first:last]) for first, last in pairwise(STEPS)]
    assert np.allclose(np.concatenate(parts), logits, atol=1e-4)


@pytest.mark.skipif(not TINY.is_dir(), reason="needs the small models beside the checkout")
@pytest.mark.parametrize("name", NAMES)
def test_the_small_models_are_llama_cpp_s_in_numpy(name: str) -> None:
    answers = json.loads((TINY / f"{name}.json").read_text())
    check(TINY / f"{name}.gguf", answers, answers["prompt_tokens"], range(40), _bound(name))


@pytest.mark.parametrize("name", ANSWERS["hybrids"])
def test_variants_are_llama_cpp_s_in_numpy(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model.gguf", HYBRIDS[name])
    check(path, ANSWERS["hybrids"][name], ANSWERS["prompt_tokens"], ANSWERS["rows"], _bound(name))


def _bound(name: str) -> float:
    return 5e-3 if name.startswith("gemma") else 2e-4  # llama.cpp takes GELU from a table of float16 arguments


def test_every_variant_has_answers() -> None:
    assert set(ANSWERS["hybrids"]) == set(HYBRIDS)
