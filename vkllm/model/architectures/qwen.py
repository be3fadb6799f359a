"""Qwen 2, 2.5 and their distillations; Qwen 3, which normalizes queries and keys."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import HeadNorm, ModelSpec


def qwen2(header: Header) -> ModelSpec:
    """Llama with halves that rotate together; its files have biases of queries, keys and values."""
    return dense_model(header, dense_layers(header, "half"))


def qwen3(header: Header) -> ModelSpec:
    """Each head of queries and keys is normalized before it is rotated."""
    layers = dense_layers(header, "half", change=lambda _, layer: replace(layer, head_norm=HeadNorm()))
    return dense_model(header, layers)
