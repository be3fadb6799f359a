"""Nemotron H, Nemotron Nano 2 and 3: each layer is Mamba 2, attention or a feed-forward layer."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.experts import read_experts, read_scale, with_mixture
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.mixers import read_mamba2, with_mixer
from vkllm.model.architectures.predictors import n_predictors, with_predictors
from vkllm.model.spec import Experts, LayerSpec, ModelSpec


def nemotron_h(header: Header) -> ModelSpec:
    """Which kind a layer is follows from its numbers of key/value heads and of columns; nothing is rotated."""
    mamba, experts = read_mamba2(header), _experts(header)
    scale, n_own = header.number("attention.scale", 0.0), header.n_layers - n_predictors(header)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        layer = replace(layer, rope=None, function="relu2", is_gated=False)
        if number >= n_own and experts:  # attention and experts in one layer
            layer = replace(layer, ffn_norm="post_attention_norm", attention_scale=scale or layer.attention_scale)
            return with_mixture(header, number, layer, experts[number])
        if layer.d_ff:
            layer = replace(with_mixer(layer, None), attn_norm=None, ffn_norm="attn_norm")
            return with_mixture(header, number, layer, experts[number]) if experts else layer
        layer = replace(layer, ffn_norm=None)
        if layer.n_kv_heads:
            return replace(layer, attention_scale=scale or layer.attention_scale)
        return with_mixer(layer, mamba)

    eps = header.number("attention.layer_norm_rms_epsilon", 0.0) or header.number("attention.layer_norm_epsilon")
    spec = dense_model(header, dense_layers(header, "half", change=change), norm_eps=eps)
    return with_predictors(header, spec, norm_form="layer", norm_eps=header.number("attention.layer_norm_epsilon", eps))


def _experts(header: Header) -> list[Experts]:
    """Of each layer, if any has experts."""
    header.full("expert_shared_count")  # there is one, as wide as another key says
    if not header.integer("expert_count", 0):
        return []
    return read_experts(
        header,
        gating="sigmoid",
        is_normalized=header.boolean("expert_weights_norm", False),
        scale=read_scale(header),
        function="relu2",
        is_gated=False,
        d_ff_shared=header.integer("expert_shared_feed_forward_length", 0),
    )
