"""gpt-oss, 20B and 120B."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.experts import EXPERTS, read_experts, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.rope import rotated_in_window
from vkllm.model.spec import LayerSpec, ModelSpec


def gpt_oss(header: Header) -> ModelSpec:
    """Experts with biases and an activation of their own; sinks; every second layer has a sliding window. Its files
    call the norm before the experts `post_attention_norm`."""
    experts = read_experts(header, gating="softmax_of_chosen", function="swiglu_oai", biases=("ffn_gate_inp", *EXPERTS))
    windows = header.windows(period=2)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        if windows[number]:
            layer = rotated_in_window(header, replace(layer, window=windows[number]))
        return with_experts(layer, experts[number], has_sinks=True, ffn_norm="post_attention_norm")

    return dense_model(header, dense_layers(header, "half", change=change))
