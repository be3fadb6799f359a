"""The architectures that vkllm runs, one file for each family, and how a model file becomes a specification."""

from __future__ import annotations

from collections.abc import Mapping

from vkllm.errors import UnsupportedModel
from vkllm.formats.gguf import Metadata, TensorInfo
from vkllm.model.architectures.family import Family
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.llama import llama
from vkllm.model.checks import check_numbers, check_tensors
from vkllm.model.keys import check_is_model, check_keys, shown
from vkllm.model.spec import ModelSpec, Pooling

FAMILIES: dict[str, Family] = {"llama": llama}
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
