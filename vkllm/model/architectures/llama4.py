"""Llama 4 Scout and Maverick, their text side."""

from __future__ import annotations

from dataclasses import replace

from vkllm.errors import UnsupportedModel
from vkllm.model.architectures.experts import read_experts, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.rope import normed_behind, rotated_in_window
from vkllm.model.spec import LayerSpec, ModelSpec, QueryTemperature

_CHUNK = 8192
"""Positions that rotated layers see, from a multiple of it on; the files do not say it."""

_EXPERTS_OF_MAVERICK = 128
"""Only Maverick does not normalize queries and keys; the files do not say that either."""


def llama4(header: Header) -> ModelSpec:
    """Three of four layers have rotations and see their own chunk only; in the others, queries grow with their
    position. An expert reads its input times its weight; all tokens take a shared one too."""
    if header.integer("attention.sliding_window", _CHUNK) == 0:
        raise UnsupportedModel(f"{header.metadata.path}: llama4 models without chunks of attention are not supported")
    experts = read_experts(header, gating="sigmoid", chooses_by_logits=True, weighs_input=True)
    step = header.integer("interleave_moe_layer_step")
    is_chunked = [bool(window) for window in header.windows(period=4, default=_CHUNK)]
    has_head_norms = experts[0].n_experts != _EXPERTS_OF_MAVERICK

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        if is_chunked[number]:
            layer = rotated_in_window(header, replace(layer, chunk=_CHUNK))
        if number % 4 == 3:
            layer = replace(layer, rope=None, query_temperature=QueryTemperature(0.1, _CHUNK, offset=1))
        elif has_head_norms:
            layer = normed_behind(layer, has_weight=False)
        if step <= 0 or (number + 1) % step:
            return layer
        mixture = experts[number]
        return with_experts(layer, replace(mixture, d_ff_shared=mixture.d_ff))

    return dense_model(header, dense_layers(header, "interleaved", change=change))
