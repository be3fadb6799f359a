"""Files of ollama's registry with names of their own are read like those of llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from expert_models import EXPERT_VARIANTS
from variant import LLAMA, POST_NORMS, RMS, D, Variant, write

from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import model_spec

NAMES = {
    "attn_output.weight": "attn_out.weight",
    "attn_output.bias": "attn_out.bias",
    "attn_sinks.weight": "attn_sinks",
    "post_attention_norm.weight": "ffn_norm.weight",
}
KEYS = {"rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 64, "feed_forward_length": 48}


def test_gpt_oss_of_ollama_is_gpt_oss(tmp_path: Path) -> None:
    ours = EXPERT_VARIANTS["gpt-oss with a window in every layer but the first"]
    ours = ours._replace(fields=ours.fields | KEYS | {"rope.scaling.type": "yarn"})
    theirs = ours._replace(
        architecture="gptoss",
        fields={k: v for k, v in ours.fields.items() if k not in ("rope.scaling.type", "expert_feed_forward_length")},
        of_layer={NAMES.get(name, name): shape for name, shape in ours.of_layer.items()},
    )
    file, other = (ModelFile.open(write(tmp_path / f"{v.architecture}.gguf", v)) for v in (ours, theirs))
    spec = model_spec(other.metadata, other.tensors)
    assert spec == model_spec(file.metadata, file.tensors) and spec.layers[0].rope.yarn is not None
    assert list(other.tensors) == list(file.tensors)
    assert all(info.name == name for name, info in other.tensors.items())
    # norms are written with other numbers than sinks, so the order of the random numbers differs behind the sinks
    assert np.array_equal(other.raw("blk.0.attn_output.weight"), file.raw("blk.0.attn_output.weight"))
    assert other.metadata.string("tokenizer.ggml.pre") == "gpt-4o" and "gptoss.block_count" not in other.metadata


def test_a_name_is_never_there_twice(tmp_path: Path) -> None:
    variant = EXPERT_VARIANTS["gpt-oss with a window in every layer but the first"]
    both = variant._replace(architecture="gptoss", of_layer=variant.of_layer | {"ffn_norm.weight": (D,)})
    tensors = ModelFile.open(write(tmp_path / "model.gguf", both)).tensors
    assert {"blk.0.ffn_norm.weight", "blk.0.post_attention_norm.weight"} <= set(tensors)


def test_olmo_3_of_ollama_is_olmo_2(tmp_path: Path) -> None:
    norms = {"attn_q_norm.weight": (64,), "attn_k_norm.weight": (32,)} | POST_NORMS
    of_layer = {
        name: shape for name, shape in (LLAMA | norms).items() if name not in ("attn_norm.weight", "ffn_norm.weight")
    }
    ours = Variant("olmo2", 4, RMS | {"attention.sliding_window": 12}, of_layer)
    specs = []
    for variant in (ours, ours._replace(architecture="olmo3")):
        file = ModelFile.open(write(tmp_path / f"{variant.architecture}.gguf", variant))
        specs.append(model_spec(file.metadata, file.tensors))
    assert specs[0] == specs[1] and specs[0].layers[0].window == 12
