"""Files of ollama's registry with names of their own are read like those of llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from expert_models import EXPERT_VARIANTS
from gguf import GGUFValueType, ReaderField
from hybrid_models import deepseek2, lfm2, qwen_next
from variant import HEAD_NORMS, LLAMA, POST_NORMS, RMS, D, Variant, write

from vkllm.formats.gguf import Metadata, ModelFile
from vkllm.formats.ollama_names import in_llama_cpp_s_names
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


IMAGES = {"v.patch_embd.weight": (D, 8), "mm.input_projection.weight": (D, 8)}
SMALL = {"attention.layer_norm_rms_epsilon": 1e-6}


def renamed(variant: Variant, **names: str) -> dict[str, tuple[int, ...]] | list[dict[str, tuple[int, ...]]]:
    def own(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {names.get(name.replace(".", "_"), name): shape for name, shape in shapes.items()}

    return [own(shapes) for shapes in variant.of_layer] if isinstance(variant.of_layer, list) else own(variant.of_layer)


def without(fields: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in fields.items() if key not in keys}


def pairs() -> dict[str, tuple[Variant, Variant]]:
    """Of each family a file as llama.cpp's and one as ollama's."""
    gemma_layer = LLAMA | HEAD_NORMS | POST_NORMS
    rope = {"rope.freq_base": 1e6, "rope.freq_base_swa": 10000.0}
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    long = {"attention.sliding_window": 8, "context_length": 131072}
    gemma = Variant("gemma3", 6, SMALL | long | rope | linear, gemma_layer)
    nested = {"rope.global.freq_base": 1e6, "rope.local.freq_base": 10000.0}
    one_b = Variant("gemma3", 6, SMALL | long | rope | {"context_length": 256}, gemma_layer)
    hybrid = qwen_next("qwen35", "ddda", 64, (6, 2, 16), (1, 4, 24, 3), 8)
    flash = deepseek2("deepseek2", 3, 64, (3, 24, 40, 16, 8, 24), (4, 2, 32, 2))
    mla = {"attention.key_length": flash.fields["attention.key_length_mla"]}
    mistral = Variant("mistral3", 2, RMS | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, LLAMA)
    return {
        "gemma3 that sees": (
            gemma,
            gemma._replace(fields=long | {"vision.block_count": 2, "mm.tokens_per_image": 256}, others=IMAGES),
        ),
        "gemma3 of text": (one_b, one_b._replace(fields=SMALL | long | {"context_length": 256} | nested)),
        "qwen35": (
            hybrid,
            hybrid._replace(
                fields=hybrid.fields
                | {"attention.head_count_kv": [0, 0, 0, 2], "rope.mrope_interleaved": True, "image_token_id": 7},
                of_layer=renamed(hybrid, ssm_dt_bias="ssm_dt"),
                others=IMAGES | {"mtp.fc.weight": (D, D)},
            ),
        ),
        "glm4moelite": (
            flash,
            flash._replace(
                architecture="glm4moelite",
                fields=without(flash.fields, "attention.key_length_mla", "attention.value_length_mla") | mla,
            ),
        ),
        "mistral3": (
            mistral._replace(
                fields=mistral.fields | {"rope.scaling.yarn_beta_fast": 16.0, "attention.temperature_scale": 0.1}
            ),
            mistral._replace(
                fields=mistral.fields | {"rope.scaling.beta_fast": 16.0, "rope.scaling_beta": 0.1}, others=IMAGES
            ),
        ),
    }


@pytest.mark.parametrize("name", pairs())
def test_a_file_of_ollama_is_the_model_that_llama_cpp_s_is(tmp_path: Path, name: str) -> None:
    ours, theirs = pairs()[name]
    paths = write(tmp_path / "ours.gguf", ours), write(tmp_path / "theirs.gguf", theirs)
    file, other = (ModelFile.open(path) for path in paths)
    assert model_spec(other.metadata, other.tensors) == model_spec(file.metadata, file.tensors)
    assert set(other.tensors) == set(file.tensors)
    assert other.metadata.integer("tokenizer.ggml.bos_token_id") == 256


def test_tokens_without_a_row_are_left_out(tmp_path: Path) -> None:
    _, theirs = pairs()["gemma3 that sees"]
    path = write(tmp_path / "theirs.gguf", theirs)
    n_all = len(ModelFile.open(path).metadata.strings("tokenizer.ggml.tokens"))
    data = path.read_bytes()
    # the table of embeddings loses its last rows: its shape in the header says so
    name = b"token_embd.weight"
    at = data.index(name) + len(name) + 4 + 8
    rows = int.from_bytes(data[at : at + 8], "little")
    path.write_bytes(data[:at] + (rows - 3).to_bytes(8, "little") + data[at + 8 :])
    metadata = ModelFile.open(path).metadata
    assert len(metadata.strings("tokenizer.ggml.tokens")) == n_all - 3
    assert len(metadata.integers("tokenizer.ggml.token_type")) == n_all - 3


def test_a_file_of_llama_cpp_stays_as_it_is(tmp_path: Path) -> None:
    ours, _ = pairs()["gemma3 that sees"]
    missing = ours._replace(fields=without(ours.fields, "rope.scaling.type", "rope.scaling.factor"))
    file = ModelFile.open(write(tmp_path / "model.gguf", missing))
    assert model_spec(file.metadata, file.tensors).layers[5].rope.scale == 1.0


def test_norms_have_llama_cpp_s_names(tmp_path: Path) -> None:
    convolutions = ModelFile.open(write(tmp_path / "lfm2.gguf", lfm2(96, 6, 3, 4, "caac")))
    width = ReaderField(0, "", [np.array([12288], np.uint32)], [0], [GGUFValueType.UINT32])  # wrong in some files
    fields = convolutions.metadata._fields | {"lfm2.feed_forward_length": width}
    theirs = {name.replace("token_embd_norm", "output_norm"): info for name, info in convolutions.tensors.items()}
    fields, tensors = in_llama_cpp_s_names(fields, theirs)
    spec = model_spec(Metadata(convolutions.path, fields), tensors)
    assert spec == model_spec(convolutions.metadata, convolutions.tensors)

    layer, rope = LLAMA | HEAD_NORMS | POST_NORMS, {"rope.freq_base": 1e6}
    embedding = ModelFile.open(
        write(tmp_path / "e.gguf", Variant("gemma3", 6, RMS | {"attention.sliding_window": 8} | rope, layer))
    )
    theirs = {name.replace("output_norm", "norm"): info for name, info in embedding.tensors.items()}
    fields, tensors = in_llama_cpp_s_names(embedding.metadata._fields, theirs)
    assert not model_spec(Metadata(embedding.path, fields), tensors).is_causal
