"""Phi 3, 3.5 and 4."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import ModelSpec


def phi3(header: Header) -> ModelSpec:
    """One tensor for queries, keys and values, one for gate and up, and LongRoPE's two sets of factors.

    Files of Phi 3 name a sliding window. Like llama.cpp, every layer sees all keys.
    """
    header.integer("attention.sliding_window", 0)
    layers = dense_layers(
        header,
        "half",
        change=lambda _, layer: replace(layer, has_fused_gate_up=True),
        has_long_factors=True,
    )
    return dense_model(header, layers)
