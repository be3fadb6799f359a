"""Hunyuan, dense: 0.5B to 7B."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def hunyuan_dense(header: Header) -> ModelSpec:
    """Queries and keys are normalized after the rotation, whose base grows with `rope.scaling.alpha`."""
    alpha = header.number("rope.scaling.alpha", 0.0)

    def change(_: int, layer: LayerSpec) -> LayerSpec:
        rope = layer.rope
        if alpha > 0 and rope is not None and layer.head_dim > 2:
            rope = replace(rope, theta=rope.theta * alpha ** (layer.head_dim / (layer.head_dim - 2)))
        return replace(layer, rope=rope, head_norm=HeadNorm(is_after_rope=True))

    return dense_model(header, dense_layers(header, "half", change=change))
