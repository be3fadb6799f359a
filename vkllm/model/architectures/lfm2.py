"""LFM2 and LFM 2.5, dense and with experts."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.experts import read_experts, read_gating, with_mixture
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.mixers import with_mixer
from vkllm.model.mixers import ShortConvolution
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def lfm2(header: Header) -> ModelSpec:
    """Layers without key/value heads have a short convolution in place of attention."""
    window = header.integer("attention.sliding_window", 0)
    return _model(header, tuple(replace(layer, window=window if layer.n_heads else 0) for layer in _layers(header)))


def lfm2moe(header: Header) -> ModelSpec:
    """The same with experts in all layers but the first."""
    n_dense = header.integer("leading_dense_block_count", 0)
    experts = read_experts(header, gating=read_gating(header, "sigmoid"), is_normalized=True)
    layers = (
        layer if number < n_dense else with_mixture(header, number, layer, experts[number])
        for number, layer in enumerate(_layers(header))
    )
    return _model(header, tuple(layers))


def _layers(header: Header) -> tuple[LayerSpec, ...]:
    convolution = ShortConvolution(header.integer("shortconv.l_cache"), header.integer("embedding_length"))

    def change(_: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, head_norm=HeadNorm()) if layer.n_kv_heads else with_mixer(layer, convolution)

    return dense_layers(header, "half", change=change)


def _model(header: Header, layers: tuple[LayerSpec, ...]) -> ModelSpec:
    return dense_model(header, layers, output_norm="token_embd_norm")
