"""Small model specifications that several tests share."""

from dataclasses import replace
from typing import Any

from vkllm.model.architectures.llama import llama_spec
from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2
from vkllm.model.spec import Experts, HeadNorm, LayerSpec, ModelSpec, QueryTemperature, Rope

_TINY: dict[str, Any] = {
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 32,
    "d_model": 96,
    "d_ff": 160,
    "n_vocab": 301,
    "n_ctx_train": 256,
}


def tiny_spec(**changes: Any) -> ModelSpec:
    """A llama of two small layers. changes: arguments of llama_spec."""
    return llama_spec(**_TINY | changes)


def wide_spec(**changes: Any) -> ModelSpec:
    """One whose columns are whole super-blocks."""
    return tiny_spec(**{"n_heads": 8, "d_model": 256, "d_ff": 512} | changes)


TINY_SPEC = tiny_spec()
WIDE_SPEC = wide_spec()

LAYER = LayerSpec(4, 2, 32, 160, Rope(10000.0, 32), 32**-0.5)
BIASES = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def of_layers(*layers: LayerSpec, **changes: Any) -> ModelSpec:
    """A model of these layers, as small as TINY_SPEC."""
    return replace(TINY_SPEC, layers=layers, **changes)


_GEMMA4 = replace(
    LAYER, rope=Rope(1e4, 32), attention_scale=0.1, head_norm=HeadNorm(), has_value_norm=True,
    function="gelu", post_attention_norm="post_attention_norm", post_ffn_norm="post_ffw_norm",
    has_output_scale=True,
)  # fmt: skip
KINDS_OF_LAYERS = {
    "qwen3": of_layers(*2 * [replace(LAYER, head_dim=64, rope=Rope(1e6, 64), head_norm=HeadNorm())]),
    "gemma": of_layers(
        replace(LAYER, n_heads=2, n_kv_heads=1, head_dim=64, rope=Rope(10000.0, 64), attention_scale=0.05, window=40,
                softcap=50.0, function="gelu", head_norm=HeadNorm(), post_attention_norm="post_attention_norm",
                post_ffn_norm="post_ffw_norm"),
        replace(LAYER, n_heads=2, n_kv_heads=1, head_dim=32, rope=Rope(1e6, 32), d_ff=80, function="gelu",
                post_attention_norm="post_attention_norm", post_ffn_norm="post_ffw_norm", has_fused_gate_up=True),
        embedding_scale=9.8, logit_softcap=30.0,
    ),
    "starcoder2": of_layers(
        replace(LAYER, function="gelu", is_gated=False, biases=BIASES), replace(LAYER, has_fused_qkv=True),
        norm_form="layer", has_output_norm_bias=True, has_output_bias=True,
    ),
    "command-r": of_layers(
        replace(LAYER, is_parallel=True, head_norm=HeadNorm(form="layer", has_weight_per_head=True)),
        replace(LAYER, is_parallel=True, rope=None, window=33),
        norm_form="layer", logit_scale=0.25,
    ),
    "olmo2": of_layers(
        replace(LAYER, attn_norm=None, ffn_norm=None, post_attention_norm="post_attention_norm",
                post_ffn_norm="post_ffw_norm", head_norm=HeadNorm(over="row")),
        replace(LAYER, residual_scale=0.22, biases=("attn_output", "ffn_down", "attn_k")),
    ),
    "hunyuan": of_layers(
        replace(LAYER, head_dim=40, rope=Rope(10000.0, 24), head_norm=HeadNorm(is_after_rope=True), function="relu2",
                is_gated=False),
        replace(LAYER, rope=Rope(10000.0, 16, "interleaved"), query_temperature=QueryTemperature(0.3, 32)),
    ),
    "gpt-oss": of_layers(
        replace(LAYER, window=40, has_sinks=True, biases=("attn_q", "attn_k", "attn_v", "attn_output"),
                function="swiglu_oai"),
        replace(LAYER, n_kv_heads=1, has_sinks=True, ffn_norm="post_attention_norm", function="swiglu_oai"),
    ),
    "qwen3.5": of_layers(
        replace(LAYER, head_dim=64, rope=Rope(1e6, 16), head_norm=HeadNorm(), has_query_gates=True),
        replace(LAYER, head_dim=40, n_heads=3, n_kv_heads=1, rope=Rope(1e6, 40, "interleaved"), has_query_gates=True),
    ),
    **{name: of_layers(
        *[replace(_GEMMA4, window=40, cache_layer=layer) for layer in (None, 0)],
        *[replace(_GEMMA4, n_kv_heads=1, head_dim=head_dim, rope=Rope(1e6, head_dim), are_values_keys=layer is None,
                  has_value_norm=layer is None, cache_layer=layer, d_ff=96) for layer in (None, 2)],
        embedding_scale=9.8, logit_softcap=30.0, d_per_layer=20,
    ) for name, head_dim in (("gemma4", 64), ("gemma4 with large heads", 512))},
    "llama4": of_layers(
        replace(LAYER, chunk=48, head_norm=HeadNorm(has_weight=False, is_after_rope=True)),
        replace(LAYER, rope=None, query_temperature=QueryTemperature(0.1, 16), chunk=64, n_heads=3, n_kv_heads=3,
                head_dim=40),
    ),
    "embeddings that are no whole blocks": of_layers(
        replace(LAYER, post_attention_norm="post_attention_norm", post_ffn_norm="post_ffw_norm"),
        replace(LAYER, n_heads=6, n_kv_heads=3, head_dim=24, rope=Rope(1e4, 24), is_parallel=True),
        replace(LAYER, d_ff=0, experts=Experts(6, 2, 48, d_ff_shared=40)),
        d_model=72, embedding_scale=3.0,
    ),
    "deepseek2": of_layers(
        *[replace(LAYER, n_heads=n_heads, n_kv_heads=1, head_dim=kv_rank + 16, rope=Rope(1e4, 16, pairing),
                  mixer=LatentAttention(q_rank, kv_rank, nope_dim, 16, 32), query_temperature=temperature)
          for n_heads, q_rank, kv_rank, nope_dim, pairing, temperature in (
              (8, 40, 64, 32, "interleaved", None), (6, 0, 96, 16, "half", QueryTemperature(0.2, 32)))],
    ),
}  # fmt: skip
"""Layers unlike llama's, by a family that has most of what is there. Kernels for large heads take long to compile."""

STATE = replace(LAYER, n_heads=0, n_kv_heads=0, head_dim=0, rope=None)
"""A layer without attention, for a mixer that keeps a state."""

HYBRID_SPEC = of_layers(
    replace(STATE, mixer=DeltaNet(2, 4, 16, 4)), LAYER, replace(STATE, mixer=Mamba2(4, 16, 16, 2, 4))
)
