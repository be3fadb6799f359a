"""Gemma 2 and 3."""

from __future__ import annotations

import math
from dataclasses import replace

from vkllm.errors import ModelFileError
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.rope import rotated_in_window, unscaled_in_window
from vkllm.model.pooling import PROJECTIONS
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec

_GEMMA2_27B_LAYERS, _GEMMA3_27B_LAYERS = 46, 62
"""The files do not say that only these models scale attention by d_model / n_heads instead of the head size."""


def gemma2(header: Header) -> ModelSpec:
    """Every second layer has a sliding window; scores and logits have soft caps."""
    windows = header.windows(period=2, default=4096)
    softcap = header.number("attn_logit_softcapping", 50.0)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        layer = replace(_gemma(header, layer, _GEMMA2_27B_LAYERS), window=windows[number], softcap=softcap)
        return rotated_in_window(header, layer) if windows[number] else layer

    return _model(header, dense_layers(header, "half", change=change), header.number("final_logit_softcapping", 30.0))


def gemma3(header: Header) -> ModelSpec:
    """Five of six layers have a sliding window, with rotations of their own; queries and keys are normalized."""
    windows = header.windows(period=6, default=0)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        layer = replace(_gemma(header, layer, _GEMMA3_27B_LAYERS), head_norm=HeadNorm(), window=windows[number])
        return unscaled_in_window(header, layer) if layer.window else layer

    return _model(header, dense_layers(header, "half", change=change), header.number("final_logit_softcapping", 0.0))


def gemma_embedding(header: Header) -> ModelSpec:
    """Gemma 3 that reads in both directions, for embeddings: a row sees half a window before and behind it."""
    windows = header.windows(period=6)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        layer = replace(_gemma(header, layer, _GEMMA3_27B_LAYERS), head_norm=HeadNorm())
        if windows[number] == 0:
            return layer
        return unscaled_in_window(header, replace(layer, window=windows[number] // 2 + 1))

    model = _model(header, dense_layers(header, "half", change=change), 0.0)
    unread = _projections(header, model.d_model)
    return replace(model, is_causal=False, has_symmetric_windows=True, unread=unread)


def _projections(header: Header, d_model: int) -> tuple[str, ...]:
    """The matrices behind pooling that the file has. Raises ModelFileError where they do not fit together."""
    found, n_columns = [], d_model
    for name in PROJECTIONS:
        key = name.removesuffix(".weight")
        said = [header.integer(f"{key}_feat_{side}", 0) for side in ("out", "in")]
        if not header.has(name):
            continue
        shape = header.tensors[name].shape
        if len(shape) != 2 or shape[1] != n_columns or any(n not in (0, m) for n, m in zip(said, shape, strict=True)):
            raise ModelFileError(
                f"{header.metadata.path}: tensor {name} has shape {shape}, expected {said[0] or 'any'} rows and "
                f"{n_columns} columns; the file is damaged"
            )
        found.append(name)
        n_columns = shape[0]
    return tuple(found)


def _gemma(header: Header, layer: LayerSpec, n_layers_27b: int) -> LayerSpec:
    """What all layers of both have: norms before and after attention and feed-forward layer, and GELU."""
    size = layer.head_dim
    if header.n_layers == n_layers_27b:
        size = header.integer("embedding_length") // layer.n_heads
    return replace(
        layer,
        attention_scale=max(size, 1) ** -0.5,
        post_attention_norm="post_attention_norm",
        post_ffn_norm="post_ffw_norm",
        function="gelu",
    )


def _model(header: Header, layers: tuple[LayerSpec, ...], softcap: float) -> ModelSpec:
    scale = math.sqrt(max(header.integer("embedding_length"), 0))
    return dense_model(header, layers, embedding_scale=scale, logit_softcap=softcap)
