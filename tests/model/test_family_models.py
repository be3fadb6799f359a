"""Small random models that this checkout makes itself, against answers of llama.cpp that it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from family_models import VARIANTS, write_variant
from file_reference import file_reference, log_softmax

ANSWERS = json.loads(Path(__file__).with_name("answers.json").read_text())


@pytest.mark.parametrize("name", ANSWERS["embeddings"])
def test_embeddings_are_llama_cpp_s(tmp_path: Path, name: str) -> None:
    model = file_reference(write_variant(tmp_path / "model.gguf", name), 256)
    rows = model.hidden_states(ANSWERS["prompt_tokens"]).astype(np.float64)
    pooled = rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0))
    assert np.allclose(pooled, ANSWERS["embeddings"][name], atol=1e-4)


@pytest.mark.parametrize("name", ANSWERS["models"])
def test_log_probabilities_and_greedy_tokens_are_llama_cpp_s(tmp_path: Path, name: str) -> None:
    answers = ANSWERS["models"][name]
    bound = 5e-3 if name.startswith("gemma") else 5e-5  # llama.cpp takes GELU from a table of float16 arguments
    model = file_reference(write_variant(tmp_path / "model.gguf", name), 256)
    found = log_softmax(model.run(ANSWERS["prompt_tokens"]))
    for row, top in zip(found[ANSWERS["rows"]], answers["positions"], strict=True):
        for token, logprob in top:
            assert row[token] == pytest.approx(logprob, abs=bound)
    token, tokens = int(found[-1].argmax()), []
    for _ in answers["greedy"]:
        tokens.append(token)
        token = int(np.argmax(model.run([token])[-1]))
    assert tokens == answers["greedy"]


def test_every_variant_has_answers() -> None:
    assert {*ANSWERS["models"], *ANSWERS["embeddings"]} == set(VARIANTS)
