"""Command R, Command R+ and Aya (`command-r`); Command R7B and Command A (`cohere2`)."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def command_r(header: Header) -> ModelSpec:
    """Attention and feed-forward layer side by side behind one layer norm; R+ normalizes queries and keys too."""

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        has_head_norm = header.has(f"blk.{number}.attn_q_norm.weight")
        head_norm = HeadNorm(form="layer", has_weight_per_head=True) if has_head_norm else None
        return replace(layer, ffn_norm=None, is_parallel=True, head_norm=head_norm)

    layers = dense_layers(header, "interleaved", change=change)
    return dense_model(header, layers, norm_form="layer", logit_scale=header.number("logit_scale", 0.0) or 1.0)


def cohere2(header: Header) -> ModelSpec:
    """Three of four layers have a sliding window; only these have rotations."""
    windows = header.windows(period=4)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        window = windows[number]
        rope = layer.rope if window else None
        return replace(layer, ffn_norm=None, is_parallel=True, window=window, rope=rope)

    layers = dense_layers(header, "interleaved", change=change)
    return dense_model(header, layers, norm_form="layer", logit_scale=header.number("logit_scale") or 1.0)
