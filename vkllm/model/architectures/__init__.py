"""The architectures that vkllm runs, one file for each family, and how a model file becomes a specification."""

from __future__ import annotations

from collections.abc import Mapping

from vkllm.errors import UnsupportedModel
from vkllm.formats.gguf import Metadata, TensorInfo
from vkllm.model.architectures.cohere import cohere2, command_r
from vkllm.model.architectures.ernie4_5 import ernie4_5
from vkllm.model.architectures.exaone4 import exaone4
from vkllm.model.architectures.family import Family
from vkllm.model.architectures.gemma import gemma2, gemma3, gemma_embedding
from vkllm.model.architectures.glm4 import glm4
from vkllm.model.architectures.granite import granite
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.hunyuan import hunyuan_dense
from vkllm.model.architectures.layer_norm import nemotron, stablelm, starcoder2
from vkllm.model.architectures.llama import llama
from vkllm.model.architectures.mistral3 import mistral3
from vkllm.model.architectures.olmo2 import olmo2
from vkllm.model.architectures.phi3 import phi3
from vkllm.model.architectures.qwen import qwen2, qwen3
from vkllm.model.architectures.seed_oss import seed_oss
from vkllm.model.architectures.smollm3 import smollm3
from vkllm.model.checks import check_numbers, check_tensors
from vkllm.model.keys import check_is_model, check_keys, shown
from vkllm.model.spec import ModelSpec, Pooling

FAMILIES: dict[str, Family] = {
    "cohere2": cohere2,
    "command-r": command_r,
    "ernie4_5": ernie4_5,
    "exaone4": exaone4,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma-embedding": gemma_embedding,
    "glm4": glm4,
    "granite": granite,
    "hunyuan-dense": hunyuan_dense,
    "llama": llama,
    "mistral3": mistral3,
    "nemotron": nemotron,
    "olmo2": olmo2,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "seed_oss": seed_oss,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}
"""By `general.architecture`."""


def model_spec(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> ModelSpec:
    """Reads and checks the specification of a model file.

    Raises UnsupportedModel for an architecture, shape, format, key or tensor that vkllm cannot run, ModelFileError for
    metadata or tensors that are missing or contradict each other.
    """
    check_is_model(metadata)
    architecture = metadata.string("general.architecture")
    if architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(
            f"{metadata.path}: architecture {shown(architecture)} is not supported; supported: {known}"
        )
    if not tensors:
        raise UnsupportedModel(f"{metadata.path}: this file has no tensors, only a vocabulary; take the whole model.")
    header = Header(metadata, tensors)
    spec = FAMILIES[architecture](header)
    check_numbers(spec, metadata)
    check_keys(spec, metadata, header.keys)
    check_tensors(spec, metadata, tensors)
    return spec


def pooling(metadata: Metadata) -> Pooling | None:
    """How a model makes embeddings: what its file says, the mean where it says nothing, None for what is not supported,
    such as a rank."""
    kinds: dict[int, Pooling] = {0: "mean", 1: "mean", 2: "cls", 3: "last"}  # llama.cpp's numbers; 0 is none
    return kinds.get(metadata.integer(f"{metadata.string('general.architecture')}.pooling_type", 0))
