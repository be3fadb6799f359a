"""ERNIE 4.5, dense and with experts."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.experts import read_experts, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import MATRICES, Header
from vkllm.model.spec import LayerSpec, ModelSpec


def ernie4_5(header: Header) -> ModelSpec:
    """Like llama."""
    return dense_model(header, dense_layers(header, "interleaved"))


def ernie4_5_moe(header: Header) -> ModelSpec:
    """The first layers are dense, of the others every so many have experts. Like llama.cpp, it knows no bias of
    attn_output."""
    experts = read_experts(
        header, is_normalized=True, d_ff_shared=header.integer("expert_shared_feed_forward_length", 0)
    )
    header.integer("expert_shared_count", 0)  # their width says it
    n_dense = header.integer("leading_dense_block_count", 0)
    step = header.integer("interleave_moe_layer_step", 1)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        if number < n_dense or step <= 0 or (number + 1) % step:
            return layer
        has_bias = header.has(f"blk.{number}.exp_probs_b.bias")
        return with_experts(layer, replace(experts[number], has_selection_bias=has_bias))

    biases = [name for name in MATRICES if name != "attn_output"]
    return dense_model(header, dense_layers(header, "interleaved", biases, change))
