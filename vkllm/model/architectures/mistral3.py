"""Ministral 3 and Devstral Small 2."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import ModelSpec, QueryTemperature


def mistral3(header: Header) -> ModelSpec:
    """Llama with all of YaRN's numbers, and queries that grow with their position."""
    scale = header.number("attention.temperature_scale", 0.0)
    n_ctx = header.integer("rope.scaling.original_context_length", header.integer("context_length"))
    temperature = QueryTemperature(scale, n_ctx) if scale else None
    layers = dense_layers(
        header,
        "interleaved",
        change=lambda _, layer: replace(layer, query_temperature=temperature),
        has_yarn_numbers=True,
    )
    return dense_model(header, layers)
