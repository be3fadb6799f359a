"""What a file has and vkllm does not compute is refused by its name; what changes nothing passes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import D, write_tiny_gguf
from work_time import work_below

from vkllm.errors import ModelFileError, UnsupportedModel, VkllmError
from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import model_spec
from vkllm.model.spec import ModelSpec


def spec_of(
    tmp_path: Path, fields: dict[str, Any] | None = None, architecture: str = "llama", **extra: tuple[int, ...]
) -> ModelSpec:
    """extra: tensors by their names, with "_" for "." in front of the last part."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", architecture=architecture, fields=fields, extra=extra)
    file = ModelFile.open(path)
    return model_spec(file.metadata, file.tensors)


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_sub_norm.weight",
        "blk.0.post_attention_norm.weight",
        "blk.0.attn_sinks.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.ffn_down_exps.weight",
        "blk.0.attn_q.scale",
        "blk.0.attn_q.input_scale",
        "blk.0.ffn_down.scale",
        "blk.0.attn_q.weight.lora_a",
        "blk.0.attn_q.Weight",
        "blk.00.attn_q.weight",
        "blk.-1.attn_q.weight",
        "blk.1.attn_q.weight",
        "blk.5.nextn.eh_proj.weight",
        "blk.99999999999999999999.attn_q.weight",
        "rope_factors_long.weight",
        "rope_factors_short.weight",
        "output.scale",
        "output_norm.bias",
        "token_embd_norm.weight",
        "cls.weight",
        "position_embd.weight",
        "v.blk.0.attn_q.weight",
        "anything at all",
        " token_embd.weight",
    ],
)
def test_a_tensor_that_is_not_computed_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        spec_of(tmp_path, **{name: (D,)})
    assert repr(name) in str(caught.value) and "does not compute" in str(caught.value)


def test_of_many_tensors_the_first_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"the tensor 'blk\.0\.attn_q\.scale' and 2 more, which"):
        spec_of(tmp_path, **{f"blk.0.attn_{name}.scale": (D,) for name in "qkv"})
    with pytest.raises(UnsupportedModel, match=r"'blk\.3\.attn_q\.weight', of a layer behind the 1 that its metadata"):
        spec_of(tmp_path, **{"blk.3.attn_q.weight": (D, D)})


def test_rotations_of_llama_3_and_an_output_of_its_own_are_computed(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **{"rope_freqs.weight": (D // 2,), "output.weight": (259, D)})
    assert spec.layers[0].rope.factors == "rope_freqs.weight" and spec.output_weight == "output.weight"


REFUSED: dict[str, Any] = {
    "attention.sliding_window": 128,
    "attention.value_length": 64,
    "attention.clamp_kqv": 8.0,
    "attention.max_alibi_bias": 8.0,
    "attention.scale": 0.5,
    "attention.temperature_scale": 0.1,
    "attention.layer_indices": [1, 2],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "embedding_scale": 12.0,
    "residual_scale": 0.22,
    "logit_scale": 8.0,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_weights_scale": 2.5,
    "nextn_predict_layers": 1,
    "rope.scaling.alpha": 1000.0,
    "rope.dimension_sections": [16, 24, 24, 0],
    "use_parallel_residual": True,
    "embedding_length_out": 64,
    "hidden_activation": "gelu",
    "ssm.state_size": 16,
    "a_key_of_tomorrow": 1,
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_asks_for_what_is_not_computed_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        spec_of(tmp_path, {f"qwen2.{key}": REFUSED[key]}, "qwen2")
    assert f"qwen2.{key} = " in str(caught.value)


def test_a_key_says_what_it_means_and_long_values_are_cut(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"qwen2\.expert_count = 8 \(a mixture of experts\), which vkllm does"):
        spec_of(tmp_path, {"qwen2.expert_count": 8}, "qwen2")
    with pytest.raises(UnsupportedModel) as caught:
        spec_of(tmp_path, {"llama." + "x" * 5000: "y" * 5000})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "fields",
    [
        {
            "llama.vocab_size": 259,
            "llama.tensor_data_layout": "Meta AI original pth",
            "llama.attention.causal": True,
            "llama.attention.sliding_window": 0,
            "llama.attention.sliding_window_pattern": [True, False],
            "llama.attention.value_length": 32,
            "llama.attention.layer_norm_epsilon": 1e-5,
            "llama.attention.clamp_kqv": 0.0,
            "llama.attention.scale": 32**-0.5,
            "llama.logit_scale": 1.0,
            "llama.residual_scale": 1.0,
            "llama.embedding_scale": 0.0,
            "llama.attn_logit_softcapping": 0.0,
            "llama.expert_count": 0,
            "llama.expert_used_count": 0,
            "llama.rope.scaling.finetuned": False,
            "llama.rope.dimension_sections": [0, 0, 0, 0],
            "llama.use_parallel_residual": False,
        },
        {"llama.attention.sliding_window": 256, "llama.attention.scale": 0.0},  # as long as the context
        {
            "general.type": "model",
            "general.tags": ["a", "b"],
            "general.sampling.temp": 0.6,
            "quantize.imatrix.entries_count": 7,
            "tokenizer.ggml.something": True,
            "mergekit.note": "merged",
            "qwen2.expert_count": 8,
        },
    ],
)
def test_keys_that_change_nothing_pass(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert spec_of(tmp_path, fields) == spec_of(tmp_path)


@pytest.mark.parametrize(
    ("kind", "words"), [("adapter", "an adapter"), ("mmproj", "a projector"), ("imatrix", "an importance matrix")]
)
def test_a_gguf_that_is_no_model_says_what_it_is(tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"this file is {words}"):
        spec_of(tmp_path, {"general.type": kind})


def test_a_vocabulary_alone_is_no_model(tiny_gguf: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no tensors, only a vocabulary"):
        model_spec(ModelFile.open(tiny_gguf).metadata, {})


COUNTS = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


@pytest.mark.parametrize("key", COUNTS)
def test_equal_numbers_for_each_layer_are_one_number(tmp_path: Path, key: str) -> None:
    number = {"feed_forward_length": 256}.get(key, 1)
    assert spec_of(tmp_path, {f"llama.{key}": [number]}) == spec_of(tmp_path)


@pytest.mark.parametrize("key", COUNTS)
def test_numbers_that_a_layer_lacks_or_that_are_none_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelFileError, match=rf"llama\.{key} has numbers for 1 layer, and the model has 2"):
        spec_of(tmp_path, {f"llama.{key}": [1], "llama.block_count": 2}, **{"blk.1.attn_norm.weight": (D,)})
    with pytest.raises(ModelFileError, match="not"):
        spec_of(tmp_path, {f"llama.{key}": [1.5]})


@pytest.mark.parametrize("n_layers", [2, 1000, 2**31 - 1, 2**31, 2**32 - 1, 2**60])
def test_a_block_count_that_the_tensors_do_not_bear_out_costs_nothing(tmp_path: Path, n_layers: int) -> None:
    file = ModelFile.open(write_tiny_gguf(tmp_path / "tiny.gguf", fields={"llama.block_count": n_layers}))
    tracemalloc.start()
    try:
        refused = pytest.raises(ModelFileError, match=r"blk\.1\.attn_norm\.weight is missing|the block count is")
        with work_below(0.5), refused:
            model_spec(file.metadata, file.tensors)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "key",
    [
        "context_length",
        "embedding_length",
        "attention.key_length",
        "rope.dimension_count",
        "rope.scaling.original_context_length",
        *COUNTS,
    ],
)
@pytest.mark.parametrize("number", [0, 2**31 - 1, 2**32 - 1, 2**63])
def test_no_number_of_the_header_costs_time_or_memory(tmp_path: Path, key: str, number: int) -> None:
    fields = {f"llama.{key}": number, "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    file = ModelFile.open(write_tiny_gguf(tmp_path / "tiny.gguf", fields=fields))
    with work_below(0.5):
        try:
            model_spec(file.metadata, file.tensors)
        except VkllmError as error:
            assert "tiny.gguf" in str(error)
