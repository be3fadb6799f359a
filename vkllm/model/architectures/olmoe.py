"""OLMoE."""

from __future__ import annotations

from vkllm.model.architectures.experts import read_experts, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def olmoe(header: Header) -> ModelSpec:
    """Norms over all queries and all keys at once; the weights of the chosen experts are not normalized."""
    experts = read_experts(header, has_own_width=False)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        return with_experts(layer, experts[number], head_norm=HeadNorm(over="row"))

    return dense_model(header, dense_layers(header, "half", change=change))
