"""Gemma 4: dense, with experts beside dense layers, and with embeddings of the token for each layer."""

from __future__ import annotations

import math
from dataclasses import replace

from vkllm.errors import ModelFileError
from vkllm.model.architectures.experts import read_experts, with_mixture
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.rope import unscaled_in_window
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def gemma4(header: Header) -> ModelSpec:
    """Layers with a sliding window have other heads and rotations than those that see all keys."""
    windows = header.windows(period=1)
    n_own = header.n_layers - header.integer("attention.shared_kv_layers", 0)
    has_experts = [header.has(f"blk.{number}.ffn_gate_inp.weight") for number in range(header.n_layers)]
    experts = []
    if any(has_experts):
        experts = read_experts(header, is_normalized=True, function="gelu", is_beside_dense=True)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        layer = _gemma4(header, number, _with_heads(header, layer, windows[number]))
        if number >= n_own:
            source = n_own - (2 if windows[number] else 1)
            _check_source(header, source, number, windows)
            layer = replace(layer, cache_layer=source, are_values_keys=False)
        if not has_experts[number]:
            return layer
        return replace(with_mixture(header, number, layer, experts[number]), d_ff=layer.d_ff)

    layers = dense_layers(header, "half", change=change)
    shared = (name for number in range(n_own, header.n_layers) for name in _unread(number))
    return dense_model(
        header,
        layers,
        embedding_scale=math.sqrt(max(header.integer("embedding_length"), 0)),
        logit_softcap=header.number("final_logit_softcapping", 0.0),
        d_per_layer=header.integer("embedding_length_per_layer_input", 0),
        unread=tuple(filter(header.has, shared)),
    )


def _with_heads(header: Header, layer: LayerSpec, window: int) -> LayerSpec:
    assert layer.rope is not None
    head_dim, dims = header.integer("attention.key_length_swa", layer.head_dim), layer.rope.dims
    dims = header.integer("rope.dimension_count_swa", dims)
    for key in ("attention.value_length", "attention.value_length_swa"):
        size = header.integer(key, -1)
        if size not in (-1, layer.head_dim if key == "attention.value_length" else head_dim):
            raise ModelFileError(f"{header.metadata.path}: {header.full(key)} is {size}, which is not that of the keys")
    if not window:
        return layer
    rope = replace(layer.rope, dims=dims, factors=None)
    return unscaled_in_window(header, replace(layer, head_dim=head_dim, rope=rope, window=window))


def _gemma4(header: Header, number: int, layer: LayerSpec) -> LayerSpec:
    return replace(
        layer,
        attention_scale=1.0,
        head_norm=HeadNorm(),
        has_value_norm=True,
        are_values_keys=not layer.has_fused_qkv and not header.has(f"blk.{number}.attn_v.weight"),
        post_attention_norm="post_attention_norm",
        post_ffn_norm="post_ffw_norm",
        function="gelu",
        has_output_scale=header.has(f"blk.{number}.layer_output_scale.weight"),
    )


def _check_source(header: Header, source: int, number: int, windows: list[int]) -> None:
    """Raises ModelFileError where a layer would read the cache of a layer of the other kind."""
    if source < 0 or bool(windows[source]) != bool(windows[number]):
        raise ModelFileError(
            f"{header.metadata.path}: layer {number} has no keys and values of its own, and layer {source} is not of "
            "its kind; the file is damaged"
        )


def _unread(number: int) -> tuple[str, ...]:
    """Tensors that files may have of layers that read another one's keys and values."""
    return tuple(f"blk.{number}.{name}.weight" for name in ("attn_k", "attn_v", "attn_k_norm"))
