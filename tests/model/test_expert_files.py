"""Files of models with experts become specifications, or errors that say what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from expert_models import EXPERT_VARIANTS
from model_specs import LAYER
from variant import D, Shape, Variant, write

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import model_spec
from vkllm.model.layer_checks import check_layer
from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2
from vkllm.model.spec import Experts, LayerSpec, ModelSpec, QueryTemperature

QWEN, GLM = "qwen3moe with 40 experts", "glm4moe, as its 355B"
ERNIE = "ernie4_5-moe without shared expert and selection bias"
LLAMA4, OLMOE = "llama4, as Maverick", "olmoe"


def spec_of(tmp_path: Path, name: str, fields: dict[str, Any] | None = None, **more: Any) -> ModelSpec:
    """A variant with other fields. more: tensors of every layer ("of_layer") to add, or to leave out where None;
    "formats" of tensors in the first layer."""
    variant: Variant = EXPERT_VARIANTS[name]
    of_layer: dict[str, Shape] = {
        k: v for k, v in (variant.of_layer | more.get("of_layer", {})).items() if v is not None
    }
    variant = variant._replace(
        fields=variant.fields | (fields or {}), of_layer=of_layer, n_layers=more.get("n_layers", 2)
    )
    file = ModelFile.open(write(tmp_path / "model.gguf", variant))
    tensors = dict(file.tensors)
    for tensor, fmt in more.get("formats", {}).items():
        tensors[f"blk.0.{tensor}.weight"] = replace(tensors[f"blk.0.{tensor}.weight"], format=fmt)
    return model_spec(file.metadata, tensors)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (QWEN, {"expert_gating_func": 1, "expert_weights_norm": True, "expert_weights_scale": 1.0}),
        (QWEN, {"expert_shared_feed_forward_length": 0, "interleave_moe_layer_step": 1, "expert_shared_count": 0}),
        (QWEN, {"expert_group_count": 1, "expert_group_used_count": 1, "expert_weights_scale": 0.0}),
        (QWEN, {"expert_used_count": [8, 8]}),
        (GLM, {"expert_gating_func": 2, "expert_weights_scale": 1.0, "rope.dimension_sections": [0, 0, 0, 1]}),
        (OLMOE, {"expert_feed_forward_length": 96, "expert_weights_norm": False}),
        (ERNIE, {"leading_dense_block_count": 0, "expert_shared_count": 0}),
    ],
)
def test_keys_that_say_what_a_family_does_anyway_pass(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    assert spec_of(tmp_path, name, fields) == spec_of(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        (QWEN, {"expert_gating_func": 2}, r"expert_gating_func = 2 \(a mixture of experts\), which vkllm does not"),
        (QWEN, {"expert_weights_norm": False}, "expert_weights_norm = False"),
        (OLMOE, {"expert_weights_norm": True}, "expert_weights_norm = True"),
        (QWEN, {"expert_weights_scale": 2.5}, r"expert_weights_scale = 2\.5"),
        (QWEN, {"expert_shared_feed_forward_length": 64}, "expert_shared_feed_forward_length = 64"),
        (QWEN, {"leading_dense_block_count": 1}, "leading_dense_block_count = 1"),
        (GLM, {"rope.dimension_sections": [1, 1, 1, 1]}, "have a fourth section, which vkllm does not compute"),
        (GLM, {"expert_gating_func": 4}, r"expert_gating_func is 4, .* supported: 1 \(softmax\), 2 \(sigmoid\), 3"),
        (LLAMA4, {"attention.sliding_window": 0}, "without chunks of attention"),
        (
            QWEN,
            {"expert_count": 1000},
            "8 of 1000 experts for each token are not supported; supported: up to 32 of 512",
        ),
    ],
)
def test_keys_that_ask_for_something_else_are_refused(
    tmp_path: Path, name: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        spec_of(tmp_path, name, fields)


@pytest.mark.parametrize("name", [QWEN, GLM, OLMOE, LLAMA4])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"expert_used_count": 0}, "the number of experts that a token takes is 0, which no model can have"),
        ({"expert_count": 0}, "the number of experts is 0"),
        ({"expert_used_count": 200}, "cannot take 200 of"),
        ({"expert_group_count": 7, "expert_group_used_count": 2}, "experts cannot be 7 groups of the same size"),
        ({"expert_used_count": [1]}, "has numbers for 1 layer, and the model has 2"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(
    tmp_path: Path, name: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelFileError, match=words):
        spec_of(tmp_path, name, fields)


@pytest.mark.parametrize(
    ("of_layer", "words"),
    [
        ({"ffn_down_exps.weight": None}, r"tensor blk\.0\.ffn_down_exps\.weight is missing"),
        ({"ffn_up_exps.weight": (40, 32, D)}, r"ffn_up_exps\.weight has shape \(40, 32, 64\), expected \(40, 48, 64\)"),
        ({"ffn_up_exps.weight": (48, D)}, r"ffn_up_exps\.weight has shape \(48, 64\), expected \(40, 48, 64\)"),
        ({"ffn_gate_inp.weight": (39, D)}, r"ffn_gate_inp\.weight has shape \(39, 64\), expected \(40, 64\)"),
    ],
)
def test_tensors_of_experts_must_be_there_and_fit(tmp_path: Path, of_layer: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        spec_of(tmp_path, QWEN, of_layer=of_layer)


@pytest.mark.parametrize(
    "tensor", ["exp_probs_b.bias", "ffn_gate_exps.bias", "ffn_gate_inp.bias", "ffn_up_shexp.weight", "ffn_gate.weight",
               "ffn_gate_up_exps.weight", "ffn_up_exps.input_scale", "ffn_gate_inp.scale"],
)  # fmt: skip
def test_tensors_that_a_family_does_not_compute_are_named(tmp_path: Path, tensor: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"'blk\.0\.{tensor}' and 1 more, which vkllm does not compute"):
        spec_of(tmp_path, QWEN, of_layer={tensor: (D,)})


def test_files_with_a_tensor_for_each_expert_are_told_from_others(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"'blk\.0\.ffn_up\.7\.weight' .*, of one expert, as files made before Apri"
    ):
        spec_of(tmp_path, QWEN, of_layer={"ffn_up.7.weight": (48, D)})


def test_experts_may_have_any_format_that_their_columns_allow(tmp_path: Path) -> None:
    widths = {"expert_feed_forward_length": 32}
    shapes = {f"ffn_{name}_exps.weight": (40, 32, D) for name in ("gate", "up")} | {"ffn_down_exps.weight": (40, D, 32)}
    for formats in (
        {"ffn_up_exps": "Q8_0", "ffn_down_exps": "MXFP4"},
        {"ffn_gate_exps": "BF16", "ffn_gate_inp": "F16"},
    ):
        assert spec_of(tmp_path, QWEN, widths, of_layer=shapes, formats=formats).layers[0].experts.d_ff == 32
    with pytest.raises(UnsupportedModel, match=r"ffn_up_exps\.weight has 64 columns; in Q4_K they must be"):
        spec_of(tmp_path, QWEN, widths, of_layer=shapes, formats={"ffn_up_exps": "Q4_K"})
    with pytest.raises(UnsupportedModel, match=r"no multiple of 32 is supported in F32, F16 and BF16 only"):
        spec_of(tmp_path, QWEN, formats={"ffn_up_exps": "Q8_0"})
    assert spec_of(tmp_path, QWEN, formats={"ffn_up_exps": "F16"}).layers[0].experts.d_ff == 48


def test_chunks_norms_and_temperatures_of_llama_4(tmp_path: Path) -> None:
    maverick = spec_of(tmp_path, LLAMA4, n_layers=8).layers
    assert [layer.chunk for layer in maverick] == 2 * [8192, 8192, 8192, 0]
    assert [layer.rope is None for layer in maverick] == 2 * [False, False, False, True]
    assert {layer.query_temperature for layer in maverick[3::4]} == {QueryTemperature(0.1, 8192, 1)}
    assert {(layer.query_temperature, layer.head_norm) for layer in maverick[:3]} == {(None, None)}
    scout = {f"ffn_{name}_exps.weight": (16, 32, D) for name in ("gate", "up")} | {"ffn_down_exps.weight": (16, D, 32)}
    layers = spec_of(
        tmp_path, LLAMA4, {"expert_count": 16}, of_layer=scout | {"ffn_gate_inp.weight": (16, D)}, n_layers=4
    ).layers
    assert [layer.head_norm is None for layer in layers] == [False, False, False, True]


def test_one_weight_of_nvfp4_s_scales_is_enough(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, QWEN, of_layer={"ffn_down_exps.scale": (40,)})
    assert spec.layers[1].experts.scales == ("ffn_down_exps",)
    with pytest.raises(UnsupportedModel, match=r"ffn_down_exps\.scale' and 1 more"):
        spec_of(tmp_path, ERNIE, of_layer={"ffn_down_exps.scale": (6,)})


MIXTURE = replace(LAYER, d_ff=0, experts=Experts(n_experts=8, n_used=2, d_ff=32))


@pytest.mark.parametrize(
    "layer",
    [
        MIXTURE,
        replace(MIXTURE, n_heads=0, attn_norm=None),
        replace(LAYER, d_ff=0, ffn_norm=None),
        replace(LAYER, n_heads=0, mixer=Mamba2(8, 16, 32, 2, 4)),
        replace(LAYER, n_heads=3, n_kv_heads=3, head_dim=8, rope=None),
        replace(LAYER, mixer=LatentAttention(0, 64, 32, 16, 32)),
    ],
)
def test_layers_without_attention_or_feed_forward_layer_pass(layer: LayerSpec) -> None:
    check_layer(layer, Path("x.gguf"))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (replace(LAYER, n_heads=0), "head count is 0"),
        (replace(LAYER, d_ff=0), "feed-forward length is 0"),
        (replace(LAYER, n_heads=2, n_kv_heads=2, head_dim=8), "queries of 16 numbers are not supported; supported: 17"),
        (replace(LAYER, mixer=LatentAttention(16, 64, 32, 16, 32)), "between two projections of 16 numbers are not"),
        (replace(LAYER, mixer=DeltaNet(3, 4, 16, 4)), "4 heads of a state cannot be shared by 3 groups"),
        (replace(LAYER, mixer=Mamba2(8, 0, 32, 2, 4)), "number head_dim of its Mamba2 is 0"),
        (replace(LAYER, mixer=LatentAttention(-1, 64, 32, 16, 32)), "number q_rank of its LatentAttention is -1"),
        (replace(MIXTURE, experts=Experts(8, 2, 0)), "width of experts is 0"),
        (replace(MIXTURE, experts=Experts(8, 3, 32, n_groups=4, n_groups_used=1)), "3 experts from 1 of 4 groups of 2"),
        (replace(MIXTURE, experts=Experts(8, 3, 32, n_groups=8, n_groups_used=4)), "cannot be 8 groups"),
        (replace(MIXTURE, experts=Experts(600, 3, 32)), "3 of 600 experts for each token are not supported"),
        (replace(MIXTURE, experts=Experts(64, 33, 32)), "33 of 64 experts for each token are not supported"),
        (replace(MIXTURE, experts=Experts(8, 2, 32, d_ff_shared=-5)), "width of the shared expert is -5"),
        (replace(MIXTURE, experts=Experts(8, 2, 32, scale=float("nan"))), "scale of experts is nan"),
    ],
)
def test_layers_that_cannot_be_are_refused(layer: LayerSpec, words: str) -> None:
    with pytest.raises((ModelFileError, UnsupportedModel), match=words):
        check_layer(layer, Path("x.gguf"))
