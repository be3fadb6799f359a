"""Small random models with experts that the models beside the checkout do not cover."""

from __future__ import annotations

from variant import ATTENTION, HEAD_DIM, HEAD_NORMS, KV, N_HEADS, NORM, NORMS, RMS, D, Q, Shape, Variant, biases

WHOLE_NORMS: dict[str, Shape] = {"attn_q_norm.weight": (Q,), "attn_k_norm.weight": (KV,)}
POST_NORM: dict[str, Shape] = {"post_attention_norm.weight": (D,)}


def experts(n_experts: int, width: int) -> dict[str, Shape]:
    """A router, and the matrices of n_experts experts."""
    return {
        "ffn_gate_inp.weight": (n_experts, D),
        "ffn_gate_exps.weight": (n_experts, width, D),
        "ffn_up_exps.weight": (n_experts, width, D),
        "ffn_down_exps.weight": (n_experts, D, width),
    }


def shared(width: int) -> dict[str, Shape]:
    """The matrices of the expert that every token takes."""
    return {
        "ffn_gate_shexp.weight": (width, D),
        "ffn_up_shexp.weight": (width, D),
        "ffn_down_shexp.weight": (D, width),
    }


def counts(n_experts: int, n_used: int, **more: object) -> dict[str, object]:
    """Metadata of all of them."""
    return {**RMS, "expert_count": n_experts, "expert_used_count": n_used, **more}


EXPERT_BIASES: dict[str, Shape] = {
    "ffn_gate_inp.bias": (6,),
    "ffn_gate_exps.bias": (6, 48),
    "ffn_up_exps.bias": (6, 48),
    "ffn_down_exps.bias": (6, D),
}
SCALES: dict[str, Shape] = {f"ffn_{name}_exps.scale": (12,) for name in ("gate", "up", "down")}
GRANITE = {"embedding_scale": 3.0, "attention.scale": 0.3, "residual_scale": 0.6, "logit_scale": 2.0}

EXPERT_VARIANTS: dict[str, Variant] = {
    "llama with 12 experts in 4 groups, and scales of them": Variant(
        "llama", 2, counts(12, 3, expert_group_count=4, expert_group_used_count=2, feed_forward_length=48),
        NORMS | ATTENTION | experts(12, 48) | SCALES,
    ),
    "qwen2moe without widths of experts": Variant(
        "qwen2moe", 2, counts(5, 2) | {"rope.freq_base": 500.0},
        NORMS | ATTENTION | experts(5, 48) | shared(96) | {"ffn_gate_inp_shexp.weight": (D,)},
        {"output.weight": (288, D)},
    ),
    "qwen3moe with 40 experts": Variant(
        "qwen3moe", 2, counts(40, 8, expert_feed_forward_length=48) | {"rope.freq_base": 800.0},
        NORMS | ATTENTION | HEAD_NORMS | experts(40, 48),
    ),
    "gpt-oss with a window in every layer but the first": Variant(
        "gpt-oss", 3, counts(6, 3, expert_feed_forward_length=48) | {
            "attention.sliding_window": 10, "attention.sliding_window_pattern": [False, True, True],
            "rope.freq_base": 700.0, "rope.freq_base_swa": 90.0,
        },
        NORM | POST_NORM | ATTENTION | biases(ATTENTION, "attn_q", "attn_k", "attn_v", "attn_output")
        | {"attn_sinks.weight": (N_HEADS,)} | experts(6, 48) | EXPERT_BIASES,
        {"output.weight": (288, D)},
    ),
    "glm4moe, as its 355B": Variant(
        "glm4moe", 2, counts(9, 4, expert_feed_forward_length=32, expert_shared_count=2) | {
            "expert_group_count": 3, "expert_group_used_count": 2,
            "rope.dimension_count": HEAD_DIM // 2, "rope.freq_base": 600.0, "rope.dimension_sections": [1, 2, 1, 0],
        },
        NORM | POST_NORM | ATTENTION | HEAD_NORMS | experts(9, 32) | {"exp_probs_b.bias": (9,)} | shared(64),
    ),
    "ernie4_5-moe without shared expert and selection bias": Variant(
        "ernie4_5-moe", 2, counts(6, 3, expert_feed_forward_length=48, interleave_moe_layer_step=1),
        NORMS | ATTENTION | experts(6, 48),
    ),
    "granitemoe": Variant("granitemoe", 2, counts(7, 3) | GRANITE, NORMS | ATTENTION | experts(7, 96)),
    "granitemoe with a shared expert": Variant(
        "granitemoe", 2, counts(6, 2, expert_shared_feed_forward_length=48) | GRANITE,
        NORMS | ATTENTION | experts(6, 96) | shared(48),
    ),
    "hunyuan-moe": Variant(
        "hunyuan-moe", 2, counts(6, 3, expert_feed_forward_length=96, expert_shared_count=1),
        NORMS | ATTENTION | HEAD_NORMS | experts(6, 96) | shared(96),
    ),
    "olmoe": Variant(
        "olmoe", 2, counts(10, 4) | {"rope.freq_base": 90.0, "attention.head_count_kv": N_HEADS},
        NORMS | dict.fromkeys(ATTENTION, (D, D)) | WHOLE_NORMS | {"attn_k_norm.weight": (Q,)} | experts(10, 96),
        {"output.weight": (288, D)},
    ),
    "minimax-m2 with softmax": Variant(
        "minimax-m2", 2, counts(6, 2, expert_gating_func=1, expert_feed_forward_length=96),
        NORMS | ATTENTION | WHOLE_NORMS | experts(6, 96) | {"exp_probs_b.bias": (6,)}, {"output.weight": (288, D)},
    ),
    "llama4, as Maverick": Variant(
        "llama4", 4, counts(128, 1, expert_feed_forward_length=32, interleave_moe_layer_step=1),
        NORMS | ATTENTION | experts(128, 32) | shared(32),
    ),
}  # fmt: skip
