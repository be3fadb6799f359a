"""Metadata and tensor tables become specifications, or errors that say what is wrong."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from model_specs import tiny_spec
from tiny_gguf import write_tiny_gguf

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.gguf import ModelFile, TensorInfo
from vkllm.model.architectures import model_spec
from vkllm.model.graph import expected_shapes
from vkllm.model.spec import Rope, Yarn


@pytest.fixture
def file(tiny_gguf: Path) -> ModelFile:
    return ModelFile.open(tiny_gguf)


def with_tensor(file: ModelFile, name: str, **changes: object) -> dict[str, TensorInfo]:
    return file.tensors | {name: replace(file.tensors[name], **changes)}


def test_the_tiny_model(file: ModelFile) -> None:
    spec = model_spec(file.metadata, file.tensors)
    assert (spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.head_dim) == (1, 1, 1, 32)
    assert (spec.d_model, spec.d_ff, spec.n_vocab, spec.n_ctx_train) == (32, 256, 259, 256)
    assert spec.layers[0].rope.pairing == "interleaved" and spec.output_weight == "token_embd.weight"
    assert set(expected_shapes(spec)) == set(file.tensors)


def test_a_missing_tensor(file: ModelFile) -> None:
    tensors = {name: info for name, info in file.tensors.items() if name != "blk.0.attn_k.weight"}
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_k\.weight is missing"):
        model_spec(file.metadata, tensors)


def test_a_tensor_of_the_wrong_shape(file: ModelFile) -> None:
    with pytest.raises(ModelFileError, match=r"attn_q.*shape \(32, 64\).*expected \(32, 32\)"):
        model_spec(file.metadata, with_tensor(file, "blk.0.attn_q.weight", shape=(32, 64)))


def test_a_format_without_kernels(file: ModelFile) -> None:
    with pytest.raises(UnsupportedModel, match=r"ffn_down\.weight is Q8_K.*supported: F32"):
        model_spec(file.metadata, with_tensor(file, "blk.0.ffn_down.weight", format="Q8_K"))


def test_columns_must_be_whole_blocks_of_the_format(file: ModelFile) -> None:
    assert model_spec(file.metadata, with_tensor(file, "blk.0.ffn_down.weight", format="Q4_K")).d_ff == 256
    with pytest.raises(UnsupportedModel, match=r"attn_q\.weight has 32 columns; in Q4_K .* multiple of 256"):
        model_spec(file.metadata, with_tensor(file, "blk.0.attn_q.weight", format="Q4_K"))


def test_a_norm_must_be_float32(file: ModelFile) -> None:
    with pytest.raises(UnsupportedModel, match=r"attn_norm\.weight is F16"):
        model_spec(file.metadata, with_tensor(file, "blk.0.attn_norm.weight", format="F16"))


def test_every_layer_has_its_nine_tensors() -> None:
    shapes = expected_shapes(tiny_spec(n_layers=5, rope=Rope(1e4, 32, factors="rope_freqs.weight")))
    assert len(shapes) == 5 * 9 + 4
    assert shapes["blk.4.attn_k.weight"] == (64, 96) and shapes["rope_freqs.weight"] == (16,)


def with_scaling(tmp_path: Path, architecture: str = "mistral3", **fields: str | float) -> ModelFile:
    """The tiny model with fields of rope.scaling, or of rope if they begin with "rope_"."""
    full = {
        f"{architecture}.rope.{name[5:] if name.startswith('rope_') else 'scaling.' + name}": value
        for name, value in fields.items()
    }
    return ModelFile.open(write_tiny_gguf(tmp_path / "scaled.gguf", architecture=architecture, fields=full))


def scaled(tmp_path: Path, architecture: str = "mistral3", **fields: str | float) -> Rope:
    file = with_scaling(tmp_path, architecture, **fields)
    (rope,) = model_spec(file.metadata, file.tensors).ropes
    return rope


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, 1),
        ({"type": "none", "factor": 4.0}, 1),
        ({"type": "linear", "factor": 4.0}, 4),
        ({"type": "linear"}, 1),
        ({"factor": 4.0}, 4),
        ({"rope_scale_linear": 8.0}, 8),
        ({"factor": 0.0}, 1),
    ],
)
def test_linear_scaling_is_what_a_factor_means_unless_the_file_says_otherwise(
    tmp_path: Path, fields: dict[str, str | float], scale: float
) -> None:
    rope = scaled(tmp_path, **fields)
    assert (rope.scale, rope.magnitude, rope.yarn) == (scale, 1, None)


def test_yarn_takes_the_paper_s_constants_unless_the_file_has_its_own(tmp_path: Path) -> None:
    rope = scaled(tmp_path, type="yarn", factor=4.0, original_context_length=64)
    assert (rope.scale, rope.yarn) == (4, Yarn(64, 32, 1))
    assert rope.magnitude == pytest.approx(0.1 * math.log(4) + 1)
    assert scaled(tmp_path, type="yarn", factor=4.0).yarn == Yarn(256), "the context it was trained for"
    own = {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0, "yarn_ext_factor": 0.5, "attn_factor": 1.5}
    rope = scaled(tmp_path, type="yarn", factor=4.0, original_context_length=64, **own)
    assert rope.yarn == Yarn(64, 16, 2) and rope.magnitude == pytest.approx(1.5 * (0.1 * math.log(4) + 1))
    rope = scaled(tmp_path, "llama", type="yarn", factor=4.0, original_context_length=64, **own)
    assert rope.yarn == Yarn(64, 32, 1), "llama.cpp reads the betas of this family only"
    rope = scaled(tmp_path, type="yarn", factor=4.0, yarn_log_multiplier=0.5)
    assert rope.magnitude == pytest.approx((0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1))
    assert scaled(tmp_path, type="yarn", factor=0.5).magnitude == 1
    assert scaled(tmp_path, attn_factor=1.25).magnitude == 1.25, "as Phi's files have it, without yarn"


def test_a_scaling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'longrope' is not supported for mistral3 models; supported: none, "):
        scaled(tmp_path, type="longrope", factor=4.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"factor": -1.0},
        {"factor": math.nan},
        {"factor": math.inf},
        {"original_context_length": 0},
        {"yarn_beta_fast": 0.0},
        {"yarn_beta_slow": math.nan},
        {"attn_factor": -1.0},
        {"yarn_log_multiplier": math.nan},
        {"rope_freq_base": 1.0},
    ],
)
def test_numbers_that_no_scaling_can_have_are_typed_errors(tmp_path: Path, fields: dict[str, float]) -> None:
    with pytest.raises(ModelFileError, match=r"scaled\.gguf"):
        scaled(tmp_path, **({"type": "yarn", "factor": 4.0} | fields))
