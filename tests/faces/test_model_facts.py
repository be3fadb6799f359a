"""What `vkllm show` tells of a model with experts."""

from __future__ import annotations

from pathlib import Path

from family_models import write_variant

from vkllm.faces.cli.model_facts import fields_of_file, lines_of
from vkllm.formats.gguf import ModelFile


def test_experts_and_the_parameters_that_a_token_takes(tmp_path: Path) -> None:
    file = ModelFile.open(write_variant(tmp_path / "experts.gguf", "qwen3moe with 40 experts"))
    fields = fields_of_file("experts", file, None)
    # a layer: attention; 8 of 40 experts; the router; norms. Then the vocabulary projection and its norm
    n_active = 2 * (64 * (64 + 32 + 32 + 64) + 8 * 3 * 64 * 48 + 40 * 64 + 2 * 64 + 2 * 16) + 64 + 288 * 64
    assert (fields["n_experts"], fields["n_experts_used"], fields["n_active_params"]) == (40, 8, n_active)
    assert dict(lines_of(fields))["experts"] == (
        "40, 8 of them for each token, which is computed with 0.2 million parameters"
    )


def test_a_dense_model_has_no_experts(tiny_gguf: Path) -> None:
    fields = fields_of_file("tiny", ModelFile.open(tiny_gguf), None)
    assert (fields["n_experts"], fields["n_active_params"]) == (0, fields["n_params"])  # its output is its embedding
    assert "experts" not in dict(lines_of(fields))
