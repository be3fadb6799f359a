"""Small random models that this checkout makes itself, against answers of llama.cpp that it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import VARIANTS, write_variant
from file_reference import file_reference, log_softmax
from variant import D, write

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import model_spec
from vkllm.model.pooling import Projection, d_embedding

ANSWERS = json.loads(Path(__file__).with_name("answers.json").read_text())
LONG = np.random.default_rng(3).integers(0, 256, 700).tolist()


@pytest.mark.parametrize("name", ANSWERS["embeddings"])
def test_embeddings_are_llama_cpp_s(tmp_path: Path, name: str) -> None:
    path = write_variant(tmp_path / "model.gguf", name, n_ctx=1024)
    file = ModelFile.open(path)
    projection = Projection(path, model_spec(file.metadata, file.tensors), file.tensors)
    for tokens, answers in ((ANSWERS["prompt_tokens"], "embeddings"), (LONG, "embeddings of 700 tokens")):
        rows = file_reference(path, 1024).hidden_states(tokens)
        assert np.allclose(projection(rows.mean(0, np.float64)), ANSWERS[answers][name], atol=1e-4)


def damaged(tmp_path: Path, fields: dict[str, Any], others: dict[str, tuple[int, ...]]) -> ModelFile:
    variant = VARIANTS["gemma-embedding with dense layers"]
    return ModelFile.open(write(tmp_path / "m.gguf", variant._replace(fields=variant.fields | fields, others=others)))


def test_matrices_behind_pooling_fit_together(tmp_path: Path) -> None:
    shapes = {"dense_2.weight": (3 * D, D), "dense_3.weight": (D, 3 * D)}
    for fields, others, message in (
        (
            {},
            shapes | {"dense_2.weight": (3 * D, 2 * D)},
            r"shape \(192, 128\), expected 192 rows and 64",
        ),
        ({}, shapes | {"dense_3.weight": (D, 2 * D)}, r"dense_3.weight has shape \(64, 128\)"),
        ({"dense_2_feat_out": D}, shapes, r"dense_2.weight has shape \(192, 64\), expected 64 rows"),
    ):
        file = damaged(tmp_path, fields, others)
        with pytest.raises(ModelFileError, match=message):
            model_spec(file.metadata, file.tensors)
    file = damaged(tmp_path, {"dense_3_feat_out": 48}, {"dense_2.weight": (3 * D, D), "dense_3.weight": (48, 3 * D)})
    assert d_embedding(model_spec(file.metadata, file.tensors), file.tensors) == 48


def test_a_reranker_is_refused_by_name(tmp_path: Path) -> None:
    reranker = VARIANTS["qwen2 in both directions"]._replace(others={"cls.output.weight": (1, D)})
    file = ModelFile.open(write(tmp_path / "m.gguf", reranker))
    with pytest.raises(UnsupportedModel, match=r"cls.output.weight', of a reranker or a classifier"):
        model_spec(file.metadata, file.tensors)


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
