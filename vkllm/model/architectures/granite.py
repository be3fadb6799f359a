"""Granite 3 and 4, dense and with experts, and Granite 4 H, which has Mamba 2 in most layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vkllm.model.architectures.experts import read_experts, with_experts, with_mixture
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.mixers import read_mamba2, with_mixer
from vkllm.model.spec import LayerSpec, ModelSpec


def granite(header: Header) -> ModelSpec:
    """Llama with scales of embeddings, attention, residuals and logits; its files can switch rotations off."""
    return _model(header, _rotated(header, _layers(header)), header.number("logit_scale"))


def granitemoe(header: Header) -> ModelSpec:
    """Experts in all layers, in some models a shared one too."""
    d_ff_shared = header.integer("expert_shared_feed_forward_length", 0)
    experts = read_experts(header, has_own_width=False, is_normalized=True, d_ff_shared=d_ff_shared)
    layers = [with_experts(layer, experts[number]) for number, layer in enumerate(_layers(header))]
    return _model(header, layers, header.number("logit_scale"))


def granite_hybrid(header: Header) -> ModelSpec:
    """Layers without key/value heads have Mamba 2 in place of attention; all or none have experts."""
    mamba = read_mamba2(header)
    layers = _rotated(header, _layers(header))
    layers = [layer if layer.n_kv_heads else with_mixer(layer, mamba) for layer in layers]
    width = header.integer("expert_shared_feed_forward_length", 0)
    if header.integer("expert_count", 0):
        experts = read_experts(header, has_own_width=False, is_normalized=True, d_ff_shared=width)
        layers = [with_mixture(header, number, layer, experts[number]) for number, layer in enumerate(layers)]
    return _model(header, layers, header.number("logit_scale", 0.0))


def _layers(header: Header) -> list[LayerSpec]:
    attention_scale = header.number("attention.scale", 0.0)
    residual_scale = header.number("residual_scale", 0.0) or 1.0
    return [
        replace(layer, attention_scale=attention_scale or layer.attention_scale, residual_scale=residual_scale)
        for layer in dense_layers(header, "interleaved", has_long_factors=True)
    ]


def _rotated(header: Header, layers: list[LayerSpec]) -> list[LayerSpec]:
    is_rotated = header.boolean("rope.scaling.finetuned", True)
    return layers if is_rotated else [replace(layer, rope=None) for layer in layers]


def _model(header: Header, layers: Sequence[LayerSpec], logit_divisor: float) -> ModelSpec:
    return dense_model(
        header,
        layers,
        embedding_scale=header.number("embedding_scale", 0.0) or 1.0,
        logit_scale=1.0 / (logit_divisor or 1.0),
    )
