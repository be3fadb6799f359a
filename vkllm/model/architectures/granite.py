"""Granite 3 and 4, dense."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import LayerSpec, ModelSpec


def granite(header: Header) -> ModelSpec:
    """Llama with scales of embeddings, attention, residuals and logits; its files can switch rotations off."""
    attention_scale = header.number("attention.scale", 0.0)
    residual_scale = header.number("residual_scale", 0.0) or 1.0
    is_rotated = header.boolean("rope.scaling.finetuned", True)

    def change(_: int, layer: LayerSpec) -> LayerSpec:
        return replace(
            layer,
            rope=layer.rope if is_rotated else None,
            attention_scale=attention_scale or layer.attention_scale,
            residual_scale=residual_scale,
        )

    return dense_model(
        header,
        dense_layers(header, "interleaved", change=change, has_long_factors=True),
        embedding_scale=header.number("embedding_scale", 0.0) or 1.0,
        logit_scale=1.0 / (header.number("logit_scale") or 1.0),
    )
