"""Small random models of every family against llama.cpp's own answers (../shared/tiny), and the page that says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from file_reference import file_reference

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import models
from vkllm.errors import UnsupportedModel
from vkllm.formats.gguf import ModelFile
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.missing import check_kernels, missing
from vkllm.model.architectures import FAMILIES, model_spec

N_PARTS = 8
"""Tests that share the models, so that none takes long."""


@pytest.mark.gpu
@pytest.mark.skipif(not models.TINY.is_dir(), reason="needs the small models beside the checkout")
@pytest.mark.parametrize("part", range(N_PARTS))
def test_log_probabilities_and_greedy_tokens_are_llama_cpp_s(device: Device, tmp_path: Path, part: int) -> None:
    for case in models.cases(tmp_path)[part::N_PARTS]:
        result = models.compare(device, case)
        assert max(result.prompt, result.decode) < models.BOUND, case.name
        assert result.numpy < case.numpy_bound, case.name
        assert result.has_same_greedy, case.name


@pytest.mark.skipif(not models.TINY.is_dir(), reason="needs the small models beside the checkout")
def test_families_without_kernels_are_refused_and_right_in_numpy() -> None:
    for path in models.TINY.glob("*.gguf"):
        file = ModelFile.open(path)
        if file.metadata.string("general.architecture") not in FAMILIES:
            continue
        spec = model_spec(file.metadata, file.tensors)
        if missing(spec) is None:
            continue
        with pytest.raises(UnsupportedModel, match=f"{path.stem}.* has no kernel for yet"):
            check_kernels(spec, path)
        answers = json.loads(path.with_suffix(".json").read_text())
        model = file_reference(path, answers["n_ctx"])
        found = model.run(answers["prompt_tokens"])
        bound = models.Case(path.stem, path, answers).numpy_bound
        for row, top in zip(found, answers["positions"], strict=True):
            assert models.difference(row, top) < bound, path.stem
        tokens = [step["token"] for step in answers["greedy"]]
        assert tokens[0] == found[-1].argmax(), path.stem
        assert [int(model.run([token])[-1].argmax()) for token in tokens[:-1]] == tokens[1:], path.stem


def test_the_page_of_models_has_every_family() -> None:
    page = models.PAGE.read_text()
    for architecture, family in FAMILIES.items():
        assert f"| `{architecture}`" in page and family.models in page
