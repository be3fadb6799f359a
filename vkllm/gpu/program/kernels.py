"""The registry of kernels: what each shader binds, which constants it takes, and its compiled variants.

One entry for each file `shaders/<name>.comp`; `shaders/build.py` checks every entry against the shader's header.
Knows nothing of models or devices; `gpu/device/kompute.py` turns an entry into dispatches.
"""

from __future__ import annotations

from vkllm.formats.quants import FORMATS
from vkllm.gpu.device.kernel import QUANTIZED_FORMATS, KernelSpec
from vkllm.gpu.program.exchange_kernels import EXCHANGE_KERNELS
from vkllm.gpu.program.state_kernels import STATE_KERNELS
from vkllm.model.memory.kernel_sizes import ATTENTION_PIECE as ATTENTION_PIECE
from vkllm.model.memory.kernel_sizes import KV_BLOCK as KV_BLOCK
from vkllm.model.memory.kernel_sizes import MAX_NARROW as MAX_NARROW
from vkllm.model.memory.kernel_sizes import MAX_PARTS as MAX_PARTS
from vkllm.model.memory.kernel_sizes import MAX_ROWS as MAX_ROWS
from vkllm.model.memory.kernel_sizes import TOP_K as TOP_K
from vkllm.model.memory.kernel_sizes import TOP_LOGITS as TOP_LOGITS

WEIGHT_FORMATS = tuple(FORMATS)

ATTENTION_TILE_ROWS = 64
"""Queries (tokens times heads) that a workgroup of `attention_tiled` takes; `TILE_ROWS` in its shader."""

ACTIVATIONS = ("none", "silu", "gelu", "relu2", "swiglu_oai")
"""Activation functions by their number in shaders/lib/activations.glsl."""

AHEAD = ("none", "window", "all")  # what `model.ops.Ahead` says, by the number in shaders/lib/seen.glsl

GATINGS = ("softmax", "sigmoid", "softmax_of_chosen")  # by the number in shaders/lib/routing.glsl

_ROUTING = (
    *("n_experts", "n_used", "gating", "has_selection_bias", "n_groups", "n_groups_used"),
    *("by_logits", "is_normalized", "scale", "has_shared_gate"),
)
"""Constants of shaders/lib/routing.glsl."""

_EXPERT_TILES = (
    *("n_experts", "expert_rows", "first_tensor", "n_slots", "x_columns", "slot_columns"),
    *("listed", "tile_size", "has_bias", "has_scales", "is_weighed"),
)
"""Constants of shaders/lib/expert_tile.glsl and expert_rows.glsl, and what products of experts have."""

NO_EXPERTS = (0, 1, 1, 1, 0, 0, 0, 0)
"""The constants of matvec_fused, from n_slots on, for a matrix that is not of experts."""

HEAD_WEIGHTS = ("none", "before", "after")
"""When queries and keys are multiplied by a weight for each dimension, before or after their rotation, by the number in
shaders/lib/rotate.glsl."""

HEAD_VALUES = ("as they are", "norm", "keys")
"""What becomes of a layer's values (`HeadNormalization.values`), by the number in shaders/attention_fused.comp."""

NORM_FORMS = ("rms", "layer", "none")
"""Forms of a norm by their number in shaders/norm.comp; "none" only quantizes."""

STATE_ROWS = 64
"""Steps of prompts store the states of layers only behind their last row, and behind multiples of so many."""

RESULT_ROWS = 0xFFFFFFFF
"""The `first_row` of `norm` that stands for the rows of the step's results."""

LINK_WORDS = 8
"""Words of a link of a chain, and of what comes before the first; `LINK_WORDS` in shaders/lib/chain.glsl."""

MOST_POLLS = 1 << 23
"""Polls after which a wait of a chain is given up (shaders/lib/chain.glsl).

A poll is an atomic that goes to the L2 cache and back: 0.2 us on a small GPU at its highest clock, 0.7 us on an H100,
somewhat more where hundreds of workgroups poll one word. So a wait ends after 2 to 10 s. A wait that succeeds lasts one
dispatch: at most some milliseconds, or 0.6 s where the largest matrix of a 405B model comes over a slow PCIe. While
another process has the GPU, ours is suspended as a whole and polls nothing, so its time slices do not count.
"""


KERNELS = {
    kernel.name: kernel
    for kernel in (
        KernelSpec(
            "activate",
            ("x", "y", "y_q16", "y_scales", "step", "up"),
            ("local_size", "columns", "activation", "is_gated", "slots", "up_columns", "up_column", "quantizes"),
            subgroup=("shuffle",),
            has_plain=True,
        ),
        KernelSpec("argmax", ("logits", "next_token", "chosen", "step"), ("local_size", "n_vocab")),
        KernelSpec(
            "attention",
            (
                *("q", "k_cache", "v_cache", "y", "y_q16", "y_scales", "step", "sinks", "gates"),
                *("partials", "arrived"),
            ),
            (
                *("local_size", "n_heads", "n_kv_heads", "head_dim", "lanes"),
                *("heads_per_workgroup", "tokens_per_workgroup", "keys_at_once", "k_q8_0", "v_q8_0"),
                *("scale", "softcap", "window", "table", "ahead", "quantizes"),
                *("chunk", "has_sinks", "gates_columns", "latent_dim"),
                *("part_keys", "log2_parts", "n_sharing", "most_parts", "first_partial"),
            ),
            subgroup=("shuffle",),
            has_plain=True,
        ),
        KernelSpec(
            "attention_fused",
            (
                *("qkv", "rope_table", "k_cache", "v_cache", "partials"),
                *("y", "y_q16", "y_scales", "step", "chain", "failure", "head_weights", "q_factors", "sinks"),
            ),
            (
                *("local_size", "n_heads", "n_kv_heads", "head_dim", "lanes", "heads_per_workgroup"),
                *("rope_dims", "is_interleaved", "keys_at_once", "k_q8_0", "v_q8_0", "most_polls"),
                *("scale", "softcap", "window", "table", "quantizes"),
                *("head_weights", "has_q_factors", "norms", "eps"),
                *("values", "is_newest_cached", "has_gates", "chunk", "has_sinks", "latent_dim"),
            ),
            ("n_parts", "arrivals", "link", "n_awaited"),
            subgroup=("shuffle",),
            chains=True,
        ),
        KernelSpec(
            "attention_tiled",
            ("q", "k_cache", "v_cache", "y", "y_q16", "y_scales", "step", "sinks", "gates"),
            (
                *("local_size", "n_heads", "n_kv_heads", "head_dim", "k_q8_0", "v_q8_0"),
                *("matrix_m", "matrix_n", "matrix_k", "scale", "softcap", "window", "table", "ahead"),
                *("n_splits", "chunk", "has_sinks", "gates_columns", "quantizes"),
            ),
            subgroup=("basic", "shuffle"),
        ),
        KernelSpec(
            "begin_step",
            ("slots", "next_token", "step", "chain", "failure"),
            ("local_size", "chain_words"),
            ("slot_word",),
        ),
        KernelSpec(
            "copy_words",
            ("source", "target"),
            ("local_size",),
            ("n_words", "target_word", "source_word"),
            surplus="loops",
        ),
        KernelSpec(
            "embed",
            ("quants", "scales", "x", "step"),
            ("local_size", "columns", "scale", "row_blocks"),
            ("first_row", "n_table_rows"),
            WEIGHT_FORMATS,
            surplus="loops",
        ),
        KernelSpec(
            "expert_matmul",
            ("quants", "scales", "x", "tiles", "entries", "routes", "y", "step", "bias", "expert_scales"),
            (
                *("local_size", "columns", "tile_tokens", "subgroups_along_rows", "subgroups_along_tokens"),
                *("matrix_m", "matrix_n", "matrix_k", "tile_rows", "steps_ahead", *_EXPERT_TILES, "in_halves"),
            ),
            ("n_weight_rows", "y_offset", "y_stride"),
            WEIGHT_FORMATS,
            subgroup=("basic",),
        ),
        KernelSpec(
            "expert_matvec",
            ("quants", "scales", "x", "x_scales", "tiles", "entries", "routes", "y", "step", "bias", "expert_scales"),
            ("local_size", "columns", "rows_per_subgroup", "slots_per_workgroup", *_EXPERT_TILES),
            ("n_weight_rows", "y_offset", "y_stride"),
            WEIGHT_FORMATS,
            uses_dot4=True,
            subgroup=("arithmetic",),
            has_plain=True,
        ),
        KernelSpec(
            "expert_sum",
            ("x", "routes", "shared_result", "add", "y", "step"),
            ("local_size", "columns", "n_slots", "is_weighed", "has_shared", "adds", "factor"),
        ),
        KernelSpec(
            "expert_tiles",
            ("routes", "tiles", "entries", "step"),
            ("local_size", "n_experts", "n_used", "tile_size", "n_tiles"),
        ),
        KernelSpec(
            "head_norm",
            ("qkv", "weight", "step"),
            (
                *("local_size", "columns", "n_q_groups", "q_columns", "n_k_groups", "k_columns"),
                *("eps", "form", "has_weight", "is_weight_of_group", "q_stride", "n_v_groups", "are_values_keys"),
            ),
            subgroup=("arithmetic",),
            has_plain=True,
        ),
        KernelSpec(
            "latent_rope",
            ("latent", "rope_table", "queries", "absorbed", "q", "k_cache", "step", "weight", "q_factors"),
            (
                *("local_size", "n_heads", "kv_rank", "nope_dim", "rope_dims", "is_interleaved"),
                *("k_q8_0", "table", "has_q_factors", "eps"),
            ),
            subgroup=("arithmetic", "shuffle"),
            has_plain=True,
        ),
        KernelSpec("mask_logits", ("logits", "masks", "step"), ("local_size", "n_vocab"), surplus="loops"),
        KernelSpec(
            "matmul",
            ("quants", "scales", "x", "add", "y", "step", "bias"),
            (
                *("local_size", "columns", "tile_tokens", "subgroups_along_rows", "subgroups_along_tokens", "adds"),
                *("matrix_m", "matrix_n", "matrix_k", "tile_rows", "steps_ahead", "has_bias", "factor"),
                *("n_parts", "in_halves"),
            ),
            ("n_weight_rows", "y_offset", "y_stride"),
            WEIGHT_FORMATS,
            subgroup=("basic",),
        ),
        KernelSpec(
            "matmul_float",
            ("weights", "x", "add", "y", "step", "bias"),
            ("local_size", "columns", "lane_rows", "lane_tokens", "adds", "has_bias", "factor"),
            ("n_weight_rows", "y_offset", "y_stride"),
        ),
        KernelSpec(
            "matmul_narrow",
            (
                *("quants", "scales", "x", "add", "y", "step", "bias", "y_halves", "norm_weight", "squares"),
                *("norm_factors", "rope_table", "k_cache", "v_cache"),
            ),
            (
                *("local_size", "columns", "n_splits", "token_tiles", "matrix_m", "matrix_n", "matrix_k"),
                *("lanes", "is_direct", "steps_ahead", "adds", "has_bias", "factor", "gates"),
                *("activation", "has_halves", "norms", "next_norm", "eps", "factors_at"),
                *("stores_heads", "n_heads", "n_kv_heads", "head_dim", "rope_dims", "table"),
            ),
            ("n_y_rows", "y_offset", "y_stride", "n_tokens"),
            WEIGHT_FORMATS,
            subgroup=("basic", "shuffle"),
        ),
        KernelSpec(
            "matrix_layout",
            ("source", "found"),
            ("local_size", "matrix_m", "matrix_n", "matrix_k", "of_tokens"),
            subgroup=("basic",),
        ),
        KernelSpec(
            "matvec",
            ("quants", "scales", "x", "x_scales", "add", "y", "step", "bias"),
            ("local_size", "columns", "rows_per_subgroup", "tokens_per_workgroup", "adds", "has_bias", "factor"),
            ("n_weight_rows", "y_offset", "y_stride"),
            WEIGHT_FORMATS,
            uses_dot4=True,
            subgroup=("arithmetic",),
            has_plain=True,
            surplus="z",
        ),
        KernelSpec(
            "matvec_fused",
            (
                *("quants", "scales", "source", "norm_weight", "add", "y", "chain", "failure", "bias", "norm_bias"),
                *("routes", "expert_scales", "shared_result"),
            ),
            (
                *("local_size", "columns", "first_column", "n_columns", "rows_per_subgroup", "unroll"),
                *("norms", "gates", "adds", "eps", "most_polls", "steps_touched", "doubles", "has_bias", "factor"),
                *("activation", "norm_has_bias", "n_slots", "n_experts", "expert_rows", "slot_rows", "sums_slots"),
                *("has_scales", "is_weighed", "has_shared"),
            ),
            ("n_y_rows", "y_offset", "n_before", "link", "n_awaited"),
            QUANTIZED_FORMATS,
            uses_dot4=True,
            subgroup=("arithmetic", "shuffle"),
            surplus="loops",
            chains=True,
        ),
        KernelSpec(
            "norm",
            (
                *("x", "weight", "bias", "add", "y", "y_q16", "y_scales", "step", "scale", "chain", "failure"),
                "norm_factors",
            ),
            (
                *("local_size", "columns", "eps", "form", "has_weight", "has_bias", "adds"),
                *("quantizes", "x_columns", "group", "factor", "has_scale", "most_polls", "y_columns", "y_column"),
                *("keeps_factors", "factors_at"),
            ),
            ("first_row", "link", "n_awaited"),
            subgroup=("arithmetic", "shuffle"),
            has_plain=True,
            chains=True,
        ),
        KernelSpec(
            "read_logits", ("logits", "host", "step"), ("local_size", "n_vocab"), ("n_places",), surplus="loops"
        ),
        KernelSpec("read_bandwidth", ("source", "sums"), ("local_size",), ("n_fours",), surplus="loops"),
        KernelSpec(
            "rope",
            ("qkv", "rope_table", "q", "k_cache", "v_cache", "step", "head_weights", "q_factors"),
            (
                *("local_size", "n_heads", "n_kv_heads", "head_dim"),
                *("rope_dims", "is_interleaved", "k_q8_0", "v_q8_0"),
                *("table", "head_weights", "has_q_factors", "has_gates"),
            ),
            subgroup=("shuffle",),
            has_plain=True,
        ),
        KernelSpec("route", ("logits", "selection_bias", "routes", "step"), ("local_size", *_ROUTING)),
        KernelSpec(
            "route_fused",
            ("weights", "source", "norm_weight", "bias", "logits", "selection_bias", "routes", "chain", "failure"),
            ("local_size", *_ROUTING, "columns", "norms", "eps", "norm_factor", "has_bias", "most_polls"),
            ("arrivals", "link", "n_awaited"),
            subgroup=("arithmetic",),
            chains=True,
        ),
        KernelSpec("sample", ("largest", "next_token", "chosen", "step"), ("local_size", "n_vocab", "n_lists")),
        KernelSpec(
            "split_planes",
            ("raw", "quants", "scales"),
            ("local_size",),
            ("n_units", "first_unit"),
            QUANTIZED_FORMATS,
            surplus="loops",
        ),
        KernelSpec("score", ("logits", "targets", "logprobs", "log_sums"), ("local_size", "n_vocab"), ("first_row",)),
        KernelSpec(
            "shift_hidden",
            ("hidden", "kept", "shifted", "step"),
            ("local_size", "columns"),
            ("keeps",),
            surplus="loops",
        ),
        KernelSpec("softcap", ("logits",), ("local_size", "n_vocab", "factor", "cap"), surplus="loops"),
        KernelSpec(
            "start_order", ("order",), ("local_size", "shared_words", "work", "most_polls"), ("number", "n_before")
        ),
        KernelSpec(
            "sum_parts",
            ("parts", "add", "y", "step", "bias"),
            ("local_size", "n_parts", "adds", "has_bias", "factor"),
            ("n_weight_rows", "y_offset", "y_stride", "part_rows"),
        ),
        KernelSpec("top_logits", ("logits", "largest", "step"), ("local_size", "n_vocab", "takes_greedy")),
        *EXCHANGE_KERNELS,
        *STATE_KERNELS,
    )
}
