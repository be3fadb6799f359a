"""Granite 3 and 4, dense and with experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vkllm.model.architectures.experts import read_experts, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import LayerSpec, ModelSpec


def granite(header: Header) -> ModelSpec:
    """Llama with scales of embeddings, attention, residuals and logits; its files can switch rotations off."""
    is_rotated = header.boolean("rope.scaling.finetuned", True)
    return _model(header, lambda _, layer: layer if is_rotated else replace(layer, rope=None))


def granitemoe(header: Header) -> ModelSpec:
    """Experts in all layers, in some models a shared one too."""
    d_ff_shared = header.integer("expert_shared_feed_forward_length", 0)
    experts = read_experts(header, has_own_width=False, is_normalized=True, d_ff_shared=d_ff_shared)
    return _model(header, lambda number, layer: with_experts(layer, experts[number]))


def _model(header: Header, change_more: Callable[[int, LayerSpec], LayerSpec]) -> ModelSpec:
    attention_scale = header.number("attention.scale", 0.0)
    residual_scale = header.number("residual_scale", 0.0) or 1.0

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        layer = change_more(number, layer)
        return replace(layer, attention_scale=attention_scale or layer.attention_scale, residual_scale=residual_scale)

    return dense_model(
        header,
        dense_layers(header, "interleaved", change=change, has_long_factors=True),
        embedding_scale=header.number("embedding_scale", 0.0) or 1.0,
        logit_scale=1.0 / (header.number("logit_scale") or 1.0),
    )
