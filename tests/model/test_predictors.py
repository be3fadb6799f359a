"""Heads that predict further tokens (nextn.* tensors): against llama.cpp's, and never in the way of the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from file_reference import file_reference, log_softmax
from hybrid_models import HYBRIDS
from variant import Variant, write

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.faces.cli.model_facts import fields_of_file, lines_of
from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import model_spec
from vkllm.model.graph import expected_shapes, of_predictors

ANSWERS = json.loads(Path(__file__).with_name("answers.json").read_text())
TOKENS = ANSWERS["prompt_tokens"]
ROWS = (0, 19, 38)
NAME = "qwen35 that predicts with a head of its own"


@pytest.mark.parametrize("name", ANSWERS["predictions"])
def test_what_a_head_predicts_is_what_llama_cpp_s_predicts(tmp_path: Path, name: str) -> None:
    """llama.cpp's context for such heads was given the hidden states of the reference."""
    model = file_reference(write(tmp_path / "model.gguf", HYBRIDS[name]), 256)
    (predictor,) = model.spec.predictors
    hidden = model.hidden_states(TOKENS)
    logits, own_hidden = model.predict(predictor, hidden[:-1], TOKENS[1:])
    found = log_softmax(logits)
    for row, top in zip(ROWS, ANSWERS["predictions"][name], strict=True):
        for token, logprob in top:
            assert found[row, token] == pytest.approx(logprob, abs=2e-4)
    assert own_hidden.shape == hidden[:-1].shape
    in_parts = file_reference(tmp_path / "model.gguf", 256)
    parts = [in_parts.predict(predictor, hidden[:-1][part], TOKENS[1:][part])[0] for part in (slice(21), slice(21, 40))]
    assert np.allclose(np.concatenate(parts), logits, atol=1e-4)


def test_show_says_what_heads_take(tmp_path: Path) -> None:
    file = ModelFile.open(write(tmp_path / "model.gguf", HYBRIDS[NAME]))
    spec = model_spec(file.metadata, file.tensors)
    assert (spec.n_layers, len(spec.predictors)) == (2, 1)
    assert {*of_predictors(spec), *expected_shapes(spec)} == set(file.tensors)
    assert {name.split(".")[1] for name in of_predictors(spec)} == {"2"}
    n_bytes = sum(tensor.n_bytes for name, tensor in file.tensors.items() if name.startswith("blk.2."))
    fields = fields_of_file("model", file, None)
    assert (fields["n_predictors"], fields["predictor_bytes"]) == (1, n_bytes)
    assert dict(lines_of(fields))["drafts"].startswith("1 head for further tokens (")


def test_a_file_may_have_dropped_the_head_that_it_counts(tmp_path: Path) -> None:
    whole = HYBRIDS[NAME]
    assert isinstance(whole.of_layer, list)
    path = write(tmp_path / "model.gguf", _with_layers(whole, whole.of_layer[:2]))
    model = file_reference(path, 256)
    assert model.spec.n_layers == 2 and not model.spec.predictors
    assert model.run(TOKENS[:3]).shape == (3, 288)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"nextn.eh_proj.weight": (64, 64)}, ModelFileError, "blk.2.nextn.eh_proj.weight has shape"),
        ({"nextn.mixer.weight": (64, 64)}, UnsupportedModel, "has the tensor 'blk.2.nextn.mixer.weight'"),
    ],
)
def test_a_head_with_other_tensors_is_refused(
    tmp_path: Path, change: dict[str, tuple[int, ...]], error: type[Exception], words: str
) -> None:
    whole = HYBRIDS[NAME]
    assert isinstance(whole.of_layer, list)
    path = write(tmp_path / "model.gguf", _with_layers(whole, [*whole.of_layer[:2], whole.of_layer[2] | change]))
    file = ModelFile.open(path)
    with pytest.raises(error, match=words):
        model_spec(file.metadata, file.tensors)


@pytest.mark.parametrize("n", [3, 4])
def test_heads_leave_layers_to_the_model(tmp_path: Path, n: int) -> None:
    whole = HYBRIDS[NAME]
    path = write(tmp_path / "model.gguf", whole._replace(fields=whole.fields | {"nextn_predict_layers": n}))
    file = ModelFile.open(path)
    with pytest.raises(ModelFileError, match=f"{n} of its 3 layers cannot predict"):
        model_spec(file.metadata, file.tensors)


def _with_layers(variant: Variant, layers: list[dict[str, tuple[int, ...]]]) -> Variant:
    """The variant with the tensors of these layers only; it counts as many as before."""
    return variant._replace(of_layer=[*layers, *[{}] * (variant.n_layers - len(layers))])
