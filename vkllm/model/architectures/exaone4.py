"""EXAONE 4."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec

_LAYERS_32B = 64
"""Only the 32B has sliding windows; files of the others may name a window that they do not use."""


def exaone4(header: Header) -> ModelSpec:
    """Norms after attention and feed-forward layer only; heads are normalized. In the 32B, three of four layers have a
    sliding window, and only these have rotations."""
    windows = header.windows(period=4, default=4096)
    has_windows = header.n_layers == _LAYERS_32B

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        window = windows[number] if has_windows else 0
        return replace(
            layer,
            window=window,
            rope=layer.rope if window or not has_windows else None,
            head_norm=HeadNorm(),
            attn_norm=None,
            post_attention_norm="post_attention_norm",
            ffn_norm=None,
            post_ffn_norm="post_ffw_norm",
        )

    return dense_model(header, dense_layers(header, "half", change=change))
