"""ERNIE 4.5, dense."""

from __future__ import annotations

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import ModelSpec


def ernie4_5(header: Header) -> ModelSpec:
    """Like llama."""
    return dense_model(header, dense_layers(header, "interleaved"))
