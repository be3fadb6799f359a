"""Small random models of every family against llama.cpp's own answers (../shared/tiny), and the page that says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import models
from vkllm.gpu.device.kompute import Device
from vkllm.model.architectures import FAMILIES

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


def test_the_page_of_models_has_every_family() -> None:
    page = models.PAGE.read_text()
    for architecture, family in FAMILIES.items():
        assert f"| `{architecture}`" in page and family.models in page
