"""OLMo 2 and 3."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec, Rope


def olmo2(header: Header) -> ModelSpec:
    """Norms after attention and feed-forward layer only, and over all queries and all keys at once. In OLMo 3, three of
    four layers have a sliding window and rotations that are never scaled."""
    windows = header.windows(period=4, default=0)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        rope = layer.rope
        if windows[number] and rope is not None:
            rope = Rope(rope.theta, rope.dims, rope.pairing)
        return replace(
            layer,
            rope=rope,
            window=windows[number],
            head_norm=HeadNorm(over="row"),
            attn_norm=None,
            post_attention_norm="post_attention_norm",
            ffn_norm=None,
            post_ffn_norm="post_ffw_norm",
        )

    return dense_model(header, dense_layers(header, "half", change=change))
