"""Registry entries of the kernels of layers that keep a state (gated delta net, Mamba 2, short convolution)."""

from __future__ import annotations

from typing import Final

from vkllm.gpu.device.kernel import KernelSpec

STATE_KERNELS: Final = (
    KernelSpec(
        "convolution",
        ("x", "weight", "bias", "states", "y", "y_q16", "y_scales", "step"),
        (
            *("local_size", "columns", "x_columns", "n_kernel", "has_silu", "is_gated", "has_bias", "slot_words"),
            "quantizes",
        ),
        ("first_column", "first_word"),
        subgroup=("shuffle",),
        has_plain=True,
    ),
    KernelSpec(
        "delta_net",
        ("qkv", "gates", "dt", "a", "states", "y", "step"),
        (
            *("local_size", "lanes", "n_k_heads", "n_v_heads", "head_dim", "is_grouped", "gates_columns"),
            *("beta_column", "alpha_column", "has_fused_gates", "eps", "slot_words"),
        ),
        ("first_word",),
        subgroup=("shuffle",),
        has_plain=True,
    ),
    KernelSpec(
        "delta_net_chunks",
        ("qkv", "gates", "dt", "a", "states", "y", "step"),
        (
            *("local_size", "n_k_heads", "n_v_heads", "head_dim", "columns", "is_grouped", "gates_columns"),
            *("beta_column", "alpha_column", "has_fused_gates", "eps", "slot_words"),
            *("matrix_m", "matrix_n", "matrix_k", "n_subgroups"),
        ),
        ("first_word",),
        subgroup=("basic", "shuffle"),
        has_plain=True,
    ),
    KernelSpec(
        "delta_net_fused",
        ("projected", "conv_weight", "states", "dt", "a", "norm_weight", "y", "step", "chain", "failure"),
        (
            *("local_size", "lanes", "n_k_heads", "n_v_heads", "head_dim", "n_kernel", "is_grouped"),
            *("z_column", "beta_column", "alpha_column", "has_fused_gates", "eps", "norm_eps", "slot_words"),
            *("state_word", "most_polls"),
        ),
        ("link", "n_awaited"),
        subgroup=("arithmetic", "shuffle"),
        chains=True,
    ),
    KernelSpec(
        "gated_norm",
        ("x", "gates", "weight", "squares", "y", "y_q16", "y_scales", "step"),
        (
            *("local_size", "columns", "group", "span", "gates_columns", "eps", "is_gated_first"),
            *("has_weight_per_group", "normed_columns", "quantizes"),
        ),
        ("first_column",),
        subgroup=("arithmetic", "shuffle"),
        has_plain=True,
    ),
    KernelSpec(
        "gated_squares",
        ("x", "gates", "y", "step"),
        ("local_size", "columns", "gates_columns"),
        ("first_column",),
        subgroup=("arithmetic",),
        has_plain=True,
    ),
    KernelSpec(
        "mamba2",
        ("xbc", "gates", "dt_bias", "a", "d", "states", "y", "step"),
        (
            *("local_size", "lanes", "n_heads", "head_dim", "d_state", "n_groups", "gates_columns", "dt_column"),
            "slot_words",
        ),
        ("first_word",),
        subgroup=("shuffle",),
        has_plain=True,
    ),
)
