"""The tensors of layers of every kind, by their sizes."""

from __future__ import annotations

from variant import Shape

Shapes = dict[str, Shape]


def norms(d: int, *names: str) -> Shapes:
    """Weights of norms of d columns."""
    return {f"{name}.weight": (d,) for name in names}


def heads(d: int, n_heads: int, n_kv_heads: int, head_dim: int, *, has_gates: bool = False) -> Shapes:
    """Attention; with n_kv_heads = 0, only queries."""
    q_width = n_heads * head_dim
    shapes: Shapes = {"attn_q.weight": ((2 if has_gates else 1) * q_width, d)}
    if n_kv_heads:
        shapes |= {f"attn_{name}.weight": (n_kv_heads * head_dim, d) for name in "kv"}
    return {**shapes, "attn_output.weight": (d, q_width)}


def normed_heads(d: int, n_heads: int, n_kv_heads: int, head_dim: int, *, has_gates: bool = False) -> Shapes:
    """Attention with norms of queries and keys."""
    names = ("attn_q_norm", "attn_k_norm") if n_kv_heads else ("attn_q_norm",)
    return {**heads(d, n_heads, n_kv_heads, head_dim, has_gates=has_gates), **norms(head_dim, *names)}


def gated(d: int, d_ff: int) -> Shapes:
    """A dense feed-forward layer."""
    return {"ffn_gate.weight": (d_ff, d), "ffn_up.weight": (d_ff, d), "ffn_down.weight": (d, d_ff)}


def experts(
    d: int, d_ff: int, n: int, *, has_bias: bool = False, is_gated: bool = True, is_fused: bool = False
) -> Shapes:
    """A mixture of n experts."""
    names = ("ffn_gate_exps", "ffn_up_exps") if is_gated else ("ffn_up_exps",)
    up: Shapes = {"ffn_gate_up_exps.weight": (n, 2 * d_ff, d)} if is_fused else {}
    up = up or {f"{name}.weight": (n, d_ff, d) for name in names}
    bias: Shapes = {"exp_probs_b.bias": (n,)} if has_bias else {}
    return {"ffn_gate_inp.weight": (n, d), **up, "ffn_down_exps.weight": (n, d, d_ff), **bias}


def shared(d: int, d_ff: int, *, has_gate: bool = False, is_gated: bool = True) -> Shapes:
    """The expert that every token takes."""
    shapes = {
        name.replace(".", "_shexp."): shape for name, shape in gated(d, d_ff).items() if is_gated or "gate" not in name
    }
    return {**shapes, "ffn_gate_inp_shexp.weight": (d,)} if has_gate else shapes


def delta_net(d: int, n_k: int, n_v: int, head_dim: int, n_kernel: int, *, is_next: bool = False) -> Shapes:
    """A gated delta net."""
    columns, width = (2 * n_k + n_v) * head_dim, n_v * head_dim
    gates: Shapes = {"ssm_ba.weight": (2 * n_v, d)} if is_next else {}
    gates = gates or {"ssm_beta.weight": (n_v, d), "ssm_alpha.weight": (n_v, d)}
    return {
        "attn_qkv.weight": (columns, d),
        "attn_gate.weight": (width, d),
        "ssm_conv1d.weight": (columns, n_kernel),
        "ssm_dt.bias": (n_v,),
        "ssm_a": (n_v,),
        **gates,
        "ssm_norm.weight": (head_dim,),
        "ssm_out.weight": (d, width),
    }


def mamba2(d: int, n_heads: int, head_dim: int, d_state: int, n_groups: int, n_kernel: int) -> Shapes:
    """A state space."""
    width = n_heads * head_dim
    columns = width + 2 * n_groups * d_state
    return {
        "ssm_in.weight": (width + columns + n_heads, d),
        "ssm_conv1d.weight": (columns, n_kernel),
        "ssm_conv1d.bias": (columns,),
        "ssm_dt.bias": (n_heads,),
        "ssm_a": (n_heads, 1),
        "ssm_d": (n_heads, 1),
        "ssm_norm.weight": (n_groups, width // n_groups),
        "ssm_out.weight": (d, width),
    }


def short_convolution(d: int, n_kernel: int) -> Shapes:
    """LFM2's."""
    return {
        "shortconv.conv.weight": (d, n_kernel),
        "shortconv.in_proj.weight": (3 * d, d),
        "shortconv.out_proj.weight": (d, d),
    }


def latent(d: int, n_heads: int, q_rank: int, kv_rank: int, nope: int, rope: int, value: int) -> Shapes:
    """Attention to latent vectors."""
    q_width = n_heads * (nope + rope)
    q: Shapes = {"attn_q.weight": (q_width, d)}
    if q_rank:
        q = {"attn_q_a.weight": (q_rank, d), "attn_q_a_norm.weight": (q_rank,), "attn_q_b.weight": (q_width, q_rank)}
    return {
        **q,
        "attn_kv_a_mqa.weight": (kv_rank + rope, d),
        "attn_kv_a_norm.weight": (kv_rank,),
        "attn_k_b.weight": (n_heads, kv_rank, nope),
        "attn_v_b.weight": (n_heads, value, kv_rank),
        "attn_output.weight": (d, n_heads * value),
    }
