"""Attention to latent vectors, of DeepSeek 2 and its relatives.

Keys and values of each head would be products of the latent vector. Instead, queries are multiplied by the matrix of
the keys, and sums of latent vectors by that of the values: the cache holds latent vectors only, as one key head.
"""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.expert_ops import ExpertMatvec
from vkllm.model.layers.layer_ops import LayerOps, padded
from vkllm.model.mixers import LatentAttention
from vkllm.model.ops import Attention, Op
from vkllm.model.spec import LayerSpec, ModelSpec
from vkllm.model.state_ops import LatentRotation


def latent_attention(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    """All its operations."""
    latent, make = layer.mixer, LayerOps(spec, layer, number)
    assert isinstance(latent, LatentAttention) and layer.rope is not None
    q_dim, cached = latent.nope_dim + latent.rope_dim, latent.kv_rank + latent.rope_dim
    q_width = layer.n_heads * q_dim
    ops: list[Op] = [replace(make.before(layer.attn_norm), is_shared=True)]
    ops.append(make.matvec({"attn_kv_a_mqa": cached}, "normed", spec.d_model, "latent"))
    if latent.q_rank:
        ops += [
            make.matvec({"attn_q_a": latent.q_rank}, "normed", spec.d_model, "q_latent", pads_rows=True),
            make.norm("attn_q_a_norm", "q_latent", "q_normed", width=latent.q_rank),
            make.matvec({"attn_q_b": q_width}, "q_normed", latent.q_rank, "queries"),
        ]
    else:
        ops.append(make.matvec({"attn_q": q_width}, "normed", spec.d_model, "queries"))
    ops += [
        _by_head(make, "attn_k_b", "queries", "absorbed", (latent.nope_dim, q_dim), latent.kv_rank),
        LatentRotation(
            output="q",
            width=layer.n_heads * cached,
            input="latent",
            layer=number,
            latent=latent,
            n_heads=layer.n_heads,
            eps=spec.norm_eps,
            rope=layer.rope,
            weight=make.tensor("attn_kv_a_norm"),
            queries="queries",
            absorbed="absorbed",
            temperature=layer.query_temperature,
        ),
        Attention(
            output="attended",
            width=layer.n_heads * latent.kv_rank,
            input="q",
            layer=number,
            n_heads=layer.n_heads,
            n_kv_heads=1,
            head_dim=cached,
            scale=layer.attention_scale,
            cache_layer=number,
            value_dim=latent.kv_rank,
            is_latent=True,
        ),
        _by_head(make, "attn_v_b", "attended", "head_values", (latent.kv_rank, latent.kv_rank), latent.value_dim),
    ]
    n_columns = layer.n_heads * latent.value_dim
    # products by head do not quantize what they write
    return ops + make.ending("attn_output", "head_values", n_columns, layer.post_attention_norm, copies=True)


def _by_head(
    make: LayerOps, name: str, source: str, output: str, columns: tuple[int, int], n_rows: int
) -> ExpertMatvec:
    """A matrix for each head. columns: that a head has, and from one head to the next."""
    n_heads, n_columns = make.layer.n_heads, columns[0]
    return ExpertMatvec(
        output=output,
        width=n_heads * n_rows,
        input=source,
        layer=make.number,
        weights=(make.tensor(name),),
        n_experts=n_heads,
        n_slots=n_heads,
        n_rows=(n_rows,),
        n_columns=padded(n_columns),
        column_padding=padded(n_columns) - n_columns,
        routes=None,
        is_input_shared=False,
        input_stride=columns[1],
        biases=(None,),
        scales=(None,),
    )
