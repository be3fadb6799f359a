"""Files of families whose layers differ: what does not fit together, or no kernel computes, is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hybrid_models import HYBRIDS, deepseek2
from model_specs import LAYER
from variant import write

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import model_spec
from vkllm.model.layer_checks import check_layer
from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2, ShortConvolution
from vkllm.model.spec import LayerSpec, ModelSpec, QueryTemperature

LFM2, QWEN = "lfm2 with a longer kernel and a window", "qwen35 that predicts with a head of its own"
DEEPSEEK, MISTRAL = "deepseek2 that predicts", "mistral4 with YaRN's usual sharpening"
MOE = "qwen35moe with scales of gates"
GEMMA, NEMOTRON = "gemma4 with unused keys", "nemotron_h_moe with more experts"


def spec_of(tmp_path: Path, name: str, fields: dict[str, Any], **formats: str) -> ModelSpec:
    """A variant with other fields, and other formats of tensors in its first layer."""
    variant = HYBRIDS[name]
    file = ModelFile.open(write(tmp_path / "model.gguf", variant._replace(fields=variant.fields | fields)))
    tensors = dict(file.tensors)
    for tensor, fmt in formats.items():
        tensors[f"blk.0.{tensor}.weight"] = replace(tensors[f"blk.0.{tensor}.weight"], format=fmt)
    return model_spec(file.metadata, tensors)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        (LFM2, {"attention.causal": False}, "reads in both directions .* does not compute for lfm2 models"),
        (LFM2, {"shortconv.l_cache": 1}, "convolution over 1 token keeps no state"),
        (QWEN, {"ssm.inner_size": 48}, "2 value heads of 16 do not make an ssm.inner_size of 48"),
        (QWEN, {"ssm.time_step_rank": 0}, "0 heads cannot share an ssm.inner_size of 32"),
        (QWEN, {"attention.recurrent_layers": [True]}, "has no flag for each layer"),
        (QWEN, {"rope.dimension_sections": [2, 2, 1, 3]}, r"sections \[2, 2, 1, 3\] leave some of 8 pairs"),
        (MOE, {"expert_weights_scale": 1.5}, r"expert_weights_scale = 1\.5 .* does not compute for qwen35moe"),
        (MISTRAL, {"attention.temperature_length": 0}, "attention temperature length is 0"),
        (DEEPSEEK, {"expert_gating_func": 4}, "expert_gating_func is 4, which is not supported"),
        (
            GEMMA,
            {"attention.shared_kv_layers": 5},
            "layer 1 has no keys and values of its own, and layer 0 is not of its kind",
        ),
        (GEMMA, {"attention.value_length_swa": 32}, "value_length_swa is 32, which is not that of the keys"),
        (NEMOTRON, {"moe_latent_size": 32}, "moe_latent_size = 32"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path: Path, name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises((ModelFileError, UnsupportedModel), match=words):
        spec_of(tmp_path, name, fields)


def test_keys_that_change_nothing_pass(tmp_path: Path) -> None:
    assert spec_of(tmp_path, QWEN, {"rope.dimension_sections": [3, 3, 2, 0], "full_attention_interval": 7}).predictors
    assert spec_of(tmp_path, GEMMA, {}).unread == tuple(
        f"blk.{layer}.{name}.weight" for layer in range(2, 6) for name in ("attn_k", "attn_v", "attn_k_norm")
    )


def test_heads_that_share_blocks_are_not_quantized(tmp_path: Path) -> None:
    assert spec_of(tmp_path, DEEPSEEK, {}, attn_v_b="Q4_0")
    odd = deepseek2("deepseek2", 2, 64, (2, 32, 32, 32, 8, 16), (4, 2, 32, 1))
    file = ModelFile.open(write(tmp_path / "odd.gguf", odd))
    assert model_spec(file.metadata, file.tensors)
    keys = replace(file.tensors["blk.0.attn_k_b.weight"], format="Q4_0")
    with pytest.raises(UnsupportedModel, match=r"attn_k_b.weight is Q4_0; for heads of 40 numbers"):
        model_spec(file.metadata, {**file.tensors, keys.name: keys})


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (replace(LAYER, mixer=DeltaNet(1, 2, 8, 4)), "results of a DeltaNet of 16 numbers are not supported"),
        (replace(LAYER, mixer=DeltaNet(1, 16, 6, 4)), "states of 6 is not supported"),
        (replace(LAYER, mixer=Mamba2(8, 16, 30, 2, 4)), "Mamba2 of 128 columns, .* states of 30 is not"),
        (replace(LAYER, mixer=Mamba2(3, 18, 32, 3, 4)), "Mamba2 of 54 columns, normed by 18"),
        (replace(LAYER, mixer=ShortConvolution(3, 82)), "ShortConvolution of 82 columns"),
        (replace(LAYER, mixer=LatentAttention(0, 560, 32, 24, 32)), "560 numbers with keys of 24 are not supported"),
        (replace(LAYER, mixer=LatentAttention(0, 36, 32, 8, 32)), "36 numbers with keys of 8 are not supported"),
        (replace(LAYER, n_heads=0, mixer=LatentAttention(0, 64, 32, 16, 32)), "head count is 0"),
        (replace(LAYER, query_temperature=QueryTemperature(0.1, 0)), "temperature length is 0"),
        (replace(LAYER, n_heads=1, n_kv_heads=1, head_dim=520), "head size of 520 .* up to 512"),
    ],
)
def test_sizes_that_no_kernel_takes_are_refused(layer: LayerSpec, words: str) -> None:
    with pytest.raises((ModelFileError, UnsupportedModel), match=words):
        check_layer(layer, Path("x.gguf"))
