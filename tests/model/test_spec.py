"""Metadata and tensor tables become specifications, or errors that say what is wrong."""

from dataclasses import replace
from pathlib import Path

import pytest
from model_specs import TINY_SPEC

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.gguf import ModelFile, TensorInfo
from vkllm.model.spec import expected_shapes, model_spec


@pytest.fixture
def file(tiny_gguf: Path) -> ModelFile:
    return ModelFile.open(tiny_gguf)


def with_tensor(file: ModelFile, name: str, **changes: object) -> dict[str, TensorInfo]:
    return file.tensors | {name: replace(file.tensors[name], **changes)}


def test_the_tiny_model(file: ModelFile) -> None:
    spec = model_spec(file.metadata, file.tensors)
    assert (spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.head_dim) == (1, 1, 1, 32)
    assert (spec.d_model, spec.d_ff, spec.n_vocab, spec.n_ctx_train) == (32, 256, 259, 256)
    assert spec.rope_pairing == "interleaved" and spec.output_weight == "token_embd.weight"
    assert set(expected_shapes(spec)) == set(file.tensors)


def test_a_missing_tensor(file: ModelFile) -> None:
    tensors = {name: info for name, info in file.tensors.items() if name != "blk.0.attn_k.weight"}
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_k\.weight is missing"):
        model_spec(file.metadata, tensors)


def test_a_tensor_of_the_wrong_shape(file: ModelFile) -> None:
    with pytest.raises(ModelFileError, match=r"attn_q.*shape \(32, 64\).*expected \(32, 32\)"):
        model_spec(file.metadata, with_tensor(file, "blk.0.attn_q.weight", shape=(32, 64)))


def test_a_format_without_kernels(file: ModelFile) -> None:
    with pytest.raises(UnsupportedModel, match=r"ffn_down\.weight is IQ2_XS.*supported: F32"):
        model_spec(file.metadata, with_tensor(file, "blk.0.ffn_down.weight", format="IQ2_XS"))


def test_columns_must_be_whole_blocks_of_the_format(file: ModelFile) -> None:
    assert model_spec(file.metadata, with_tensor(file, "blk.0.ffn_down.weight", format="Q4_K")).d_ff == 256
    with pytest.raises(UnsupportedModel, match=r"attn_q\.weight has 32 columns; in Q4_K .* multiple of 256"):
        model_spec(file.metadata, with_tensor(file, "blk.0.attn_q.weight", format="Q4_K"))


def test_a_norm_must_be_float32(file: ModelFile) -> None:
    with pytest.raises(UnsupportedModel, match=r"attn_norm\.weight is F16"):
        model_spec(file.metadata, with_tensor(file, "blk.0.attn_norm.weight", format="F16"))


def test_biases_are_refused_rather_than_ignored(file: ModelFile) -> None:
    bias = replace(file.tensors["output_norm.weight"], name="blk.0.attn_q.bias")
    with pytest.raises(UnsupportedModel, match="bias"):
        model_spec(file.metadata, file.tensors | {bias.name: bias})


def test_every_layer_has_its_nine_tensors() -> None:
    shapes = expected_shapes(replace(TINY_SPEC, n_layers=5, has_rope_freqs=True))
    assert len(shapes) == 5 * 9 + 4
    assert shapes["blk.4.attn_k.weight"] == (64, 96) and shapes["rope_freqs.weight"] == (16,)
