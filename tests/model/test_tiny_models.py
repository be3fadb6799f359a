"""Small random models of each family against llama.cpp's own answers (../shared/tiny), in numpy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from file_reference import file_reference, log_softmax

TINY = Path(__file__).parents[3] / "shared" / "tiny"
FAMILIES = (
    *("cohere2", "exaone4", "gemma2", "gemma3", "glm4", "granite", "hunyuan-dense"),
    *("llama", "llama-bias", "llama-linear", "llama-ropefreqs", "llama-yarn", "mistral3", "olmo2", "olmo2-window"),
    *("phi3-long", "phi3-short", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
)
GELU = ("gemma2", "gemma3", "starcoder2")
"""llama.cpp takes GELU from a table of float16 arguments, so its own answers are that inexact."""

pytestmark = pytest.mark.skipif(not TINY.is_dir(), reason="needs the small models beside the checkout")


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_and_greedy_tokens_are_llama_cpp_s(name: str) -> None:
    answers = json.loads((TINY / f"{name}.json").read_text())
    bound = 5e-3 if name in GELU else 2e-4
    model = file_reference(TINY / f"{name}.gguf", answers["n_ctx"])
    found = log_softmax(model.run(answers["prompt_tokens"]))
    for row, top in zip(found, answers["positions"], strict=True):
        for token, logprob in top:
            assert row[token] == pytest.approx(logprob, abs=bound)
    token = int(found[-1].argmax())
    for step in answers["greedy"]:
        assert token == step["token"]
        token = int(model.run([token])[-1].argmax())
