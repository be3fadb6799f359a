"""Seed-OSS 36B."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import ModelSpec


def seed_oss(header: Header) -> ModelSpec:
    """Like Qwen 2; its files call the norm before the feed-forward layer `post_attention_norm`."""
    layers = dense_layers(header, "half", change=lambda _, layer: replace(layer, ffn_norm="post_attention_norm"))
    return dense_model(header, layers)
