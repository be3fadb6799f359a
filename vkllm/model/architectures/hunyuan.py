"""Hunyuan, dense (0.5B to 7B) and with experts (A13B)."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.experts import read_experts, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.rope import normed_behind
from vkllm.model.spec import LayerSpec, ModelSpec


def hunyuan_dense(header: Header) -> ModelSpec:
    """Queries and keys are normalized after the rotation, whose base grows with `rope.scaling.alpha`."""
    alpha = header.number("rope.scaling.alpha", 0.0)

    def change(_: int, layer: LayerSpec) -> LayerSpec:
        rope = layer.rope
        if alpha > 0 and rope is not None and layer.head_dim > 2:
            rope = replace(rope, theta=rope.theta * alpha ** (layer.head_dim / (layer.head_dim - 2)))
        return normed_behind(replace(layer, rope=rope))

    return dense_model(header, dense_layers(header, "half", change=change))


def hunyuan_moe(header: Header) -> ModelSpec:
    """Queries and keys are normalized after the rotation, and there is a shared expert. Experts are as wide as
    `feed_forward_length` says."""
    d_ff = header.per_layer("feed_forward_length")
    own = header.per_layer("expert_shared_feed_forward_length", [0] * header.n_layers)
    header.integer("expert_shared_count", 0)  # their width says it
    experts = read_experts(header, has_own_width=False, is_normalized=True)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        mixture = replace(experts[number], d_ff_shared=own[number] or d_ff[number])
        return normed_behind(with_experts(layer, mixture))

    return dense_model(header, dense_layers(header, "half", change=change))
