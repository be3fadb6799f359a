"""Grouped-query attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from vkllm.formats.quants import BLOCK
from vkllm.model.layers.layer_ops import LayerOps
from vkllm.model.ops import Ahead, Attention, HeadNormalization, Op, Rotation
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def attention(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    """Queries, keys and values, their norms and rotations, attention, and the projection of its result."""
    make = LayerOps(spec, layer, number)
    n_kv_heads = layer.n_kv_heads if layer.cache_layer is None else 0
    q_width, kv_width = layer.n_heads * layer.head_dim, n_kv_heads * layer.head_dim
    projected = 2 * q_width if layer.has_query_gates else q_width
    heads = {"n_heads": layer.n_heads, "n_kv_heads": n_kv_heads, "head_dim": layer.head_dim, "layer": number}
    width = projected + 2 * kv_width
    ops: list[Op] = [
        replace(make.before(layer.attn_norm), is_shared=layer.is_parallel),
        replace(make.matvec(_projections(layer, projected, kv_width), "normed", spec.d_model, "qkv"), width=width),
    ]
    norm, weights = layer.head_norm, _norm_weights(make, layer, n_kv_heads)
    if norm is not None or layer.has_value_norm:
        values: Literal["as they are", "norm", "keys"] = "keys" if layer.are_values_keys else "norm"
        ops.append(
            HeadNormalization(
                output="qkv",
                width=width,
                input="qkv",
                norm=norm or HeadNorm(form="none", has_weight=False),
                eps=spec.norm_eps / (norm.magnitude**2 if norm is not None else 1.0),
                weights=None if norm is None or norm.is_after_rope else weights,
                has_gates=layer.has_query_gates,
                values=values if layer.has_value_norm and n_kv_heads else "as they are",
                **heads,
            )
        )
    ops += [
        Rotation(
            output="q",
            width=q_width,
            input="qkv",
            rope=layer.rope,
            weights=weights if norm is not None and norm.is_after_rope else None,
            temperature=layer.query_temperature,
            has_gates=layer.has_query_gates,
            **heads,
        ),
        Attention(
            output="attended",
            width=q_width,
            input="q",
            scale=layer.attention_scale,
            softcap=layer.softcap,
            window=layer.window,
            ahead=_ahead(spec, layer),
            chunk=layer.chunk,
            cache_layer=number if layer.cache_layer is None else layer.cache_layer,
            sinks=make.tensor("attn_sinks") if layer.has_sinks else None,
            gates="qkv" if layer.has_query_gates else None,
            value_dim=layer.head_dim,
            layer=number,
            n_heads=layer.n_heads,
            n_kv_heads=layer.n_kv_heads,
            head_dim=layer.head_dim,
        ),
    ]
    copies = layer.head_dim % BLOCK > 0  # attention cannot quantize blocks that two heads share
    return ops + make.ending("attn_output", "attended", q_width, layer.post_attention_norm, copies=copies)


def _ahead(spec: ModelSpec, layer: LayerSpec) -> Ahead:
    """Which of the keys behind it a row sees."""
    if spec.is_causal:
        return "none"
    return "window" if layer.window and spec.has_symmetric_windows else "all"


def _projections(layer: LayerSpec, q_width: int, kv_width: int) -> dict[str, int]:
    """The matrices of queries, keys and values, with their rows."""
    if layer.has_fused_qkv:
        return {"attn_qkv": q_width + 2 * kv_width}
    if kv_width == 0:
        return {"attn_q": q_width}
    keys = {"attn_q": q_width, "attn_k": kv_width}
    return keys if layer.are_values_keys else {**keys, "attn_v": kv_width}


def _norm_weights(make: LayerOps, layer: LayerSpec, n_kv_heads: int) -> tuple[str, ...] | None:
    """The weights of the norms of queries and keys."""
    if layer.head_norm is None or not layer.head_norm.has_weight:
        return None
    queries = make.tensor("attn_q_norm")
    return (queries, make.tensor("attn_k_norm")) if n_kv_heads else (queries,)
