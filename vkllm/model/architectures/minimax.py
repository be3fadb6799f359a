"""MiniMax M2."""

from __future__ import annotations

from vkllm.model.architectures.experts import read_experts, read_gating, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def minimax_m2(header: Header) -> ModelSpec:
    """Norms over all queries and all keys at once; experts are as wide as `feed_forward_length` says."""
    experts = read_experts(
        header,
        has_own_width=False,
        gating=read_gating(header, "sigmoid"),
        has_selection_bias=True,
        is_normalized=True,
    )

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        return with_experts(layer, experts[number], head_norm=HeadNorm(over="row"))

    return dense_model(header, dense_layers(header, "half", change=change))
