"""Variants of families whose layers differ, and of models that predict further tokens."""

from __future__ import annotations

from typing import Any

from expert_models import EXPERT_VARIANTS
from layer_shapes import (
    Shapes,
    delta_net,
    experts,
    gated,
    heads,
    latent,
    mamba2,
    normed_heads,
    norms,
    shared,
    short_convolution,
)
from variant import D, Variant

Counts = int | list[int]


def _sizes(d: int, d_ff: Counts, n_heads: Counts, n_kv_heads: Counts, head_dim: int) -> dict[str, Any]:
    return {
        "embedding_length": d,
        "feed_forward_length": d_ff,
        "attention.head_count": n_heads,
        "attention.head_count_kv": n_kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": 700.0,
        "attention.layer_norm_rms_epsilon": 0.02,
    }


def lfm2(d: int, n_heads: int, n_kv: int, n_kernel: int, kinds: str, d_ff: int = 96, **fields: Any) -> Variant:
    """kinds: a letter for each layer, "c" for a convolution, "a" for attention."""
    block = {**norms(d, "attn_norm", "ffn_norm"), **gated(d, d_ff)}
    of_kind = {"c": short_convolution(d, n_kernel), "a": normed_heads(d, n_heads, n_kv, d // n_heads)}
    sizes = _sizes(d, d_ff, n_heads, [n_kv if kind == "a" else 0 for kind in kinds], d // n_heads)
    return Variant(
        "lfm2", len(kinds), sizes | {"shortconv.l_cache": n_kernel} | fields, [block | of_kind[kind] for kind in kinds]
    )


def qwen_next(
    architecture: str,
    kinds: str,
    d: int,
    of_attention: tuple[int, int, int],
    net: tuple[int, int, int, int],
    dims: int,
    mixture: tuple[int, int, int, int] | None = None,
    *,
    is_fused: bool = False,
    **fields: Any,
) -> Variant:
    """kinds: "d" for a delta net, "a" for attention. of_attention: heads, key/value heads, head size. net: key heads,
    value heads, head size, kernel. mixture: experts, how many a token takes, their width, the shared one's."""
    n_k, n_v, state, n_kernel = net
    sizes = _sizes(d, 96, *of_attention) | {
        "rope.dimension_count": dims,
        "ssm.conv_kernel": n_kernel,
        "ssm.inner_size": n_v * state,
        "ssm.state_size": state,
        "ssm.time_step_rank": n_v,
        "ssm.group_count": n_k,
        "full_attention_interval": len(kinds) + 1,
        "attention.recurrent_layers": [kind == "d" for kind in kinds],
    }
    if architecture != "qwen3next":
        sizes["rope.dimension_sections"] = [*[-(-dims // 6)] * 3, 0]
    block = {**norms(d, "attn_norm", "post_attention_norm")}
    if mixture is None:
        block |= gated(d, 96)
    else:
        n_experts, n_used, width, width_shared = mixture
        block |= experts(d, width, n_experts, is_fused=is_fused) | shared(d, width_shared, has_gate=True)
        sizes |= {
            "expert_count": n_experts,
            "expert_used_count": n_used,
            "expert_feed_forward_length": width,
            "expert_shared_feed_forward_length": width_shared,
        }
    of_kind = {
        "d": delta_net(d, *net, is_next=architecture == "qwen3next"),
        "a": normed_heads(d, *of_attention, has_gates=True),
    }
    return Variant(architecture, len(kinds), sizes | fields, [block | of_kind[kind] for kind in kinds])


def granite_hybrid(
    kinds: str,
    d: int,
    d_ff: int,
    of_attention: tuple[int, int, int],
    of_mamba: tuple[int, int, int, int, int],
    **fields: Any,
) -> Variant:
    """kinds: "m" for Mamba 2, "a" for attention. of_mamba: as mamba2's."""
    sizes = _sizes(d, d_ff, of_attention[0], [of_attention[1] if kind == "a" else 0 for kind in kinds], of_attention[2])
    block = norms(d, "attn_norm", "ffn_norm") | gated(d, d_ff)
    of_kind = {"m": mamba2(d, *of_mamba), "a": heads(d, *of_attention)}
    return Variant(
        "granitehybrid", len(kinds), sizes | _mamba_sizes(*of_mamba) | fields, [block | of_kind[k] for k in kinds]
    )


def _mamba_sizes(n_heads: int, head_dim: int, d_state: int, n_groups: int, n_kernel: int) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": n_kernel,
        "ssm.inner_size": n_heads * head_dim,
        "ssm.state_size": d_state,
        "ssm.time_step_rank": n_heads,
        "ssm.group_count": n_groups,
    }


def nemotron_h(
    kinds: str,
    d: int,
    of_attention: tuple[int, int, int],
    of_mamba: tuple[int, int, int, int, int],
    mixture: tuple[int, int, int, int] | None = None,
    **fields: Any,
) -> Variant:
    """kinds: "m" for Mamba 2, "a" for attention, "f" for a feed-forward layer."""
    n_kv = [of_attention[1] if kind == "a" else 0 for kind in kinds]
    sizes = _sizes(d, [80 if kind == "f" else 0 for kind in kinds], of_attention[0], n_kv, of_attention[2])
    sizes |= _mamba_sizes(*of_mamba) | {"attention.layer_norm_epsilon": 0.1}
    block: Shapes = {name: shape for name, shape in gated(d, 80).items() if "gate" not in name}
    if mixture is not None:
        n_experts, n_used, width, width_shared = mixture
        block = experts(d, width, n_experts, has_bias=True, is_gated=False) | shared(d, width_shared, is_gated=False)
        sizes |= {
            "expert_count": n_experts,
            "expert_used_count": n_used,
            "expert_feed_forward_length": width,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": width_shared,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
        }
    of_kind = {"m": mamba2(d, *of_mamba), "a": heads(d, *of_attention), "f": block}
    layers = [norms(d, "attn_norm") | of_kind[kind] for kind in kinds]
    return Variant("nemotron_h" if mixture is None else "nemotron_h_moe", len(kinds), sizes | fields, layers)


def deepseek2(
    architecture: str,
    n_layers: int,
    d: int,
    of_latent: tuple[int, int, int, int, int, int],
    mixture: tuple[int, int, int, int],
    *,
    has_bias: bool = False,
    **fields: Any,
) -> Variant:
    """of_latent: as latent's. mixture: experts, how many a token takes, their width, how many shared. The first layer
    has none."""
    n_heads, q_rank, kv_rank, nope, rope, value = of_latent
    n_experts, n_used, width, n_shared = mixture
    sizes = _sizes(d, 96, n_heads, 1, kv_rank + rope) | {
        "rope.dimension_count": rope,
        "attention.value_length": kv_rank,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": value,
        "attention.kv_lora_rank": kv_rank,
        "leading_dense_block_count": 1,
        "expert_count": n_experts,
        "expert_used_count": n_used,
        "expert_feed_forward_length": width,
        "expert_shared_count": n_shared,
    }
    if q_rank:
        sizes["attention.q_lora_rank"] = q_rank
    block = norms(d, "attn_norm", "ffn_norm") | latent(d, *of_latent)
    moe = experts(d, width, n_experts, has_bias=has_bias) | shared(d, width * n_shared)
    return Variant(
        architecture,
        n_layers,
        sizes | fields,
        [block | (moe if number else gated(d, 96)) for number in range(n_layers)],
    )


def gemma4(
    kinds: str,
    d: int,
    full: tuple[int, int, int],
    sliding: tuple[int, int, int],
    *,
    n_shared: int = 0,
    d_per_layer: int = 0,
    mixture: tuple[int, int, int] | None = None,
    has_values: str = "s",
    is_fused: bool = False,
    has_shared_keys: bool = False,
    **fields: Any,
) -> Variant:
    """kinds: "s" for a sliding window, "f" for attention to all keys. full, sliding: heads, key/value heads, head size.
    has_values: kinds that have attn_v. has_shared_keys: layers without keys and values have their tensors all the same.
    """
    of_kind = {"s": sliding, "f": full}
    sizes = _sizes(d, 96, *([of_kind[kind][i] for kind in kinds] for i in range(2)), full[2]) | {
        "attention.key_length_swa": sliding[2],
        "attention.value_length_swa": sliding[2],
        "rope.dimension_count_swa": sliding[2],
        "rope.freq_base_swa": 90.0,
        "attention.sliding_window": 11,
        "attention.sliding_window_pattern": [kind == "s" for kind in kinds],
        "attention.shared_kv_layers": n_shared,
        "embedding_length_per_layer_input": d_per_layer,
        "final_logit_softcapping": 8.0,
    }
    block = norms(d, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm") | gated(d, 96)
    block["layer_output_scale.weight"] = (1,)
    if mixture is not None:
        n_experts, n_used, width = mixture
        sizes |= {"expert_count": n_experts, "expert_used_count": n_used, "expert_feed_forward_length": width}
        block |= experts(d, width, n_experts) | norms(d, "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
        block |= {"ffn_gate_inp.scale": (d,), "ffn_down_exps.scale": (n_experts,)}
    others: Shapes = {"rope_freqs.weight": (full[2] // 2,)}
    if d_per_layer:
        width = d_per_layer * len(kinds)
        others |= {"per_layer_token_embd.weight": (288, width), "per_layer_model_proj.weight": (width, d)}
        others |= norms(d_per_layer, "per_layer_proj_norm")
        block |= {"inp_gate.weight": (d_per_layer, d), "proj.weight": (d, d_per_layer), "post_norm.weight": (d,)}
    layers = []
    for number, kind in enumerate(kinds):
        n_heads, n_kv, head_dim = of_kind[kind]
        n_own = n_kv if number < len(kinds) - n_shared or has_shared_keys else 0
        shapes = normed_heads(d, n_heads, n_own, head_dim)
        if kind not in has_values:
            shapes.pop("attn_v.weight", None)
        if is_fused:
            del shapes["attn_q.weight"], shapes["attn_k.weight"], shapes["attn_v.weight"]
            shapes["attn_qkv.weight"] = ((n_heads + 2 * n_kv) * head_dim, d)
        layers.append(block | shapes)
    return Variant("gemma4", len(kinds), sizes | fields, layers, others)


def with_predictor(variant: Variant, block: Shapes, *own: str, **per_layer: Any) -> Variant:
    """The same with a layer behind the others that predicts a further token. own: of shared_head_norm, embed_tokens and
    shared_head_head, what it does not share with the model. per_layer: its values in arrays."""
    assert isinstance(variant.of_layer, list)
    d = variant.fields["embedding_length"]
    shapes: Shapes = norms(d, "nextn.enorm", "nextn.hnorm") | {"nextn.eh_proj.weight": (d, 2 * d)}
    shapes |= {f"nextn.{name}.weight": (d,) if name.endswith("norm") else (288, d) for name in own}
    arrays = {key: [*value, per_layer[key]] for key, value in variant.fields.items() if key in per_layer}
    fields = variant.fields | arrays | {"nextn_predict_layers": 1}
    layers = [*variant.of_layer, block | shapes]
    return variant._replace(n_layers=variant.n_layers + 1, fields=fields, of_layer=layers)


def with_expert_scales(variant: Variant, *names: str) -> Variant:
    """The same with a scale for each expert in these matrices of all layers that have experts, as files in NVFP4."""
    assert isinstance(variant.of_layer, list)
    n_experts = variant.fields["expert_count"]
    scales: Shapes = {f"ffn_{name}_exps.scale": (n_experts,) for name in names}
    return variant._replace(
        of_layer=[layer | (scales if "ffn_gate_inp.weight" in layer else {}) for layer in variant.of_layer]
    )


def _qwen_block(d: int, of_attention: tuple[int, int, int]) -> Shapes:
    return norms(d, "attn_norm", "post_attention_norm") | normed_heads(d, *of_attention, has_gates=True)


_GLM = EXPERT_VARIANTS["glm4moe, as its 355B"]
assert isinstance(_GLM.of_layer, dict)

HYBRIDS: dict[str, Variant] = {
    "lfm2 with a longer kernel and a window": lfm2(96, 6, 3, 4, "caac", **{"attention.sliding_window": 9}),
    "lfm2 with 80 columns": lfm2(80, 5, 1, 3, "ca"),
    "qwen35 whose file says which layers": qwen_next("qwen35", "addad", 64, (6, 2, 16), (1, 4, 24, 3), 8),
    "qwen35moe with gate and up in one tensor": qwen_next(
        "qwen35moe", "dad", 64, (4, 4, 24), (3, 6, 16, 4), 24, (5, 3, 40, 64), is_fused=True
    ),
    "qwen35 with three value heads": qwen_next("qwen35", "da", 64, (2, 1, 16), (1, 3, 24, 4), 16),
    "qwen3next with other heads": qwen_next("qwen3next", "da", 96, (2, 1, 32), (2, 6, 16, 2), 16, (6, 2, 32, 40)),
    "qwen3next with scales of experts": with_expert_scales(
        qwen_next("qwen3next", "da", 64, (2, 1, 32), (2, 4, 16, 4), 16, (7, 2, 32, 40)), "gate", "up", "down"
    ),
    "qwen35moe with scales of gates": with_expert_scales(
        qwen_next("qwen35moe", "ad", 64, (2, 1, 32), (1, 2, 16, 4), 16, (5, 2, 32, 32)), "gate"
    ),
    "granitehybrid without experts": granite_hybrid(
        "mam", 64, 96, (4, 1, 16), (8, 16, 24, 4, 3), **{"rope.scaling.finetuned": True, "logit_scale": 1.5}
    ),
    "nemotron_h with heads of 12": nemotron_h("mfa", 64, (2, 1, 32), (6, 12, 16, 2, 4)),
    "nemotron_h with wider states": nemotron_h("mfam", 64, (4, 1, 24), (6, 16, 40, 3, 2)),
    "nemotron_h_moe with more experts": nemotron_h("fmaf", 96, (2, 2, 32), (4, 24, 16, 2, 4), (9, 4, 64, 96)),
    "nemotron_h_moe with scales of experts": with_expert_scales(
        nemotron_h("maf", 64, (2, 1, 32), (4, 16, 16, 2, 4), (5, 2, 32, 32)), "up", "down"
    ),
    "deepseek2 as V2 Lite": deepseek2("deepseek2", 27, 64, (3, 0, 40, 16, 8, 24), (4, 2, 32, 2)),
    "deepseek2 with linear scaling": deepseek2(
        "deepseek2", 2, 64, (2, 32, 32, 24, 16, 32), (6, 3, 32, 1), has_bias=True,
        **{"rope.scaling.type": "linear", "rope.scaling.factor": 3.0, "rope.scaling.yarn_log_multiplier": 0.05,
           "rope.scaling.attn_factor": 1.1, "expert_gating_func": 2, "expert_weights_norm": True},
    ),
    "mistral4 with YaRN's usual sharpening": deepseek2(
        "mistral4", 2, 64, (4, 32, 64, 16, 16, 16), (4, 2, 64, 1),
        **{"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 32,
           "attention.temperature_scale": 0.2, "attention.temperature_length": 7},
    ),
    "gemma4 with heads of 512": gemma4("sfsf", 64, (2, 1, 512), (2, 2, 256), has_values=""),
    "gemma4 with queries, keys and values in one tensor": gemma4(
        "sf", 96, (3, 1, 32), (6, 2, 16), is_fused=True, has_values="sf"
    ),
    "gemma4 with unused keys": gemma4(
        "sfsfsf", 64, (4, 2, 32), (4, 1, 16), n_shared=4, d_per_layer=24, has_values="sf", has_shared_keys=True
    ),
    "gemma4 with 72 columns": gemma4("sf", 72, (3, 1, 16), (3, 1, 16), d_per_layer=20, mixture=(6, 3, 32)),
    "gemma4 with split experts": gemma4("ssf", 64, (4, 2, 48), (4, 2, 24), mixture=(6, 3, 32)),
    "qwen35 that predicts with a head of its own": with_predictor(
        qwen_next("qwen35", "da", 64, (2, 1, 32), (1, 2, 16, 4), 16), _qwen_block(64, (2, 1, 32)) | gated(64, 96),
        "shared_head_norm", "embed_tokens", "shared_head_head", **{"attention.recurrent_layers": True},
    ),
    "qwen35moe that predicts with the model's head": with_predictor(
        qwen_next("qwen35moe", "da", 64, (2, 1, 32), (1, 2, 16, 4), 16, (4, 2, 32, 32)),
        _qwen_block(64, (2, 1, 32)) | experts(64, 32, 4) | shared(64, 32, has_gate=True),
        **{"attention.recurrent_layers": False},
    ),
    "qwen3next that predicts": with_predictor(
        qwen_next("qwen3next", "da", 64, (2, 1, 32), (1, 2, 16, 4), 16, (4, 2, 32, 32)),
        _qwen_block(64, (2, 1, 32)) | experts(64, 32, 4) | shared(64, 32, has_gate=True),
        "shared_head_norm", **{"attention.recurrent_layers": False},
    ),
    "deepseek2 that predicts": with_predictor(
        deepseek2("deepseek2", 2, 64, (2, 32, 32, 16, 8, 16), (4, 2, 32, 1), has_bias=True, expert_gating_func=2),
        norms(64, "attn_norm", "ffn_norm") | latent(64, 2, 32, 32, 16, 8, 16) | experts(64, 32, 4, has_bias=True)
        | shared(64, 32), "shared_head_norm", "shared_head_head",
    ),
    "glm4moe that predicts": with_predictor(  # llama.cpp's head knows no sections
        _GLM._replace(
            of_layer=_GLM.n_layers * [_GLM.of_layer],
            fields=_GLM.fields | {"embedding_length": D, "rope.dimension_sections": [0, 0, 0, 0]},
        ),
        _GLM.of_layer, "shared_head_norm", "embed_tokens", "shared_head_head",
    ),
    "nemotron_h_moe that predicts": with_predictor(
        nemotron_h("maf", 64, (2, 1, 32), (4, 16, 16, 2, 4), (4, 2, 32, 32)),
        norms(64, "attn_norm", "post_attention_norm") | heads(64, 2, 1, 32)
        | experts(64, 32, 4, has_bias=True, is_gated=False) | shared(64, 32, is_gated=False),
        "shared_head_norm", **{"feed_forward_length": 0, "attention.head_count_kv": 1},
    ),
}  # fmt: skip
