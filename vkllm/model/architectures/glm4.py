"""GLM 4 and Z1, 9B and 32B, and the text side of GLM 4.1V and 4.6V Flash."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.rope import has_sections
from vkllm.model.spec import LayerSpec, ModelSpec


def glm4(header: Header) -> ModelSpec:
    """Norms before and after attention and feed-forward layer; gate and up are one tensor. In those that see pictures,
    halves rotate together."""

    def change(_: int, layer: LayerSpec) -> LayerSpec:
        return replace(
            layer,
            post_attention_norm="post_attention_norm",
            post_ffn_norm="post_ffw_norm",
            has_fused_gate_up=True,
        )

    return dense_model(header, dense_layers(header, "half" if has_sections(header) else "interleaved", change=change))
