"""SmolLM 3."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import LayerSpec, ModelSpec


def smollm3(header: Header) -> ModelSpec:
    """Llama without rotations in every fourth layer."""

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, rope=None) if number % 4 == 3 else layer

    return dense_model(header, dense_layers(header, "interleaved", change=change))
