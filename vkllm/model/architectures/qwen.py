"""Qwen 2, 2.5 and their distillations; Qwen 3, which normalizes queries and keys; both with experts too."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.experts import read_experts, scales, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def qwen2(header: Header) -> ModelSpec:
    """Llama with halves that rotate together; its files have biases of queries, keys and values."""
    return dense_model(header, dense_layers(header, "half"))


def qwen2moe(header: Header) -> ModelSpec:
    """The weights of the chosen experts are not normalized, and the shared expert has a gate."""
    d_ff = header.per_layer("feed_forward_length")
    own = header.per_layer("expert_shared_feed_forward_length", [0] * header.n_layers)
    experts = read_experts(header, has_shared_gate=True)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        return with_experts(layer, replace(experts[number], d_ff_shared=own[number] or d_ff[number]))

    return dense_model(header, dense_layers(header, "half", change=change))


def qwen3(header: Header) -> ModelSpec:
    """Each head of queries and keys is normalized before it is rotated."""
    layers = dense_layers(header, "half", change=lambda _, layer: replace(layer, head_norm=HeadNorm()))
    return dense_model(header, layers)


def qwen3moe(header: Header) -> ModelSpec:
    """Qwen 3 with experts in every layer."""
    experts = read_experts(header, is_normalized=True)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        mixture = replace(experts[number], scales=scales(header, number))
        return with_experts(layer, mixture, head_norm=HeadNorm())

    return dense_model(header, dense_layers(header, "half", change=change))
