"""How many rounds an invocation's loops take in total: lavapipe silently ends loops after 65,535.

An upper bound for each kernel, from its constants, its workgroups and the cached tokens. A loop takes one round more
than its body runs, the one in which it ends; loops that a shader unrolls take none. `tests/gpu/test_rounds.py` compares
the shaders' loops with this file.
"""

from __future__ import annotations

from typing import Final

from vkllm.errors import DeviceError
from vkllm.formats.quants import FORMATS
from vkllm.gpu.device.kompute import Dispatch
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.device.requirements import described
from vkllm.gpu.program.exchange_kernels import MOST_RANKS
from vkllm.gpu.program.kernels import KV_BLOCK, MAX_NARROW, MAX_PARTS, MAX_ROWS, MOST_POLLS, TOP_K, TOP_LOGITS
from vkllm.gpu.program.step import TABLE_WORD

BUDGET: Final = 65_535
"""Rounds of an invocation on lavapipe (Mesa 22.3.6, measured)."""

MOST_TABLE_WORDS: Final = max(fmt.table_words for fmt in FORMATS.values())

MOST_PARTS: Final = 14
"""Most invocations that split a unit of weights together; `PARTS` in shaders/formats."""

PORTION_ROUNDS: Final = BUDGET // 2
"""Most rounds of the loop over rows of matvec_fused; more rows take more workgroups."""


def most_polls(info: DeviceInfo) -> int:
    """Polls after which a wait of a chain is given up; fewer on lavapipe, where only tests chain."""
    return BUDGET // 4 if _is_limited(info) else MOST_POLLS


def _is_limited(info: DeviceInfo) -> bool:
    return info.driver_name == "llvmpipe"


def check_rounds(dispatch: Dispatch, info: DeviceInfo, n_keys: int) -> None:
    """Raises DeviceError if lavapipe would end a kernel's loops too early. n_keys: cached tokens, at most."""
    if _is_limited(info) and (n := rounds(dispatch, info.subgroup_size, n_keys)) > BUDGET:
        raise DeviceError(
            f"{described(info)} ends the loops of a kernel after {BUDGET:,} rounds, and {dispatch.kernel.name} would "
            f"need {n:,}; use a shorter context or a smaller model, or another device"
        )


def rounds(dispatch: Dispatch, subgroup_size: int, n_keys: int) -> int:
    """Most rounds of all loops of an invocation together."""
    return 16 + _rounds(dispatch, subgroup_size, n_keys)  # the last round of each outermost loop


def _rounds(dispatch: Dispatch, subgroup_size: int, n_keys: int) -> int:
    v, kernel = dispatch.values, dispatch.kernel.name
    size = v["local_size"]
    table = _up(MOST_TABLE_WORDS, size) if dispatch.kernel.formats else 0
    n = dispatch.groups[0] * dispatch.groups[2] * size  # invocations along x
    match kernel:
        case "all_reduce":
            share = _up(v["width"] * v["columns"] // (8 if v["packs"] else 4), dispatch.groups[0])
            if not v["is_scattered"]:
                return v["n_copies"] * (2 * _up(share, size) + 3 + v["n_ranks"]) + _exchange(v) + v["most_polls"]
            piece = _up(_up(share, v["n_ranks"]), size)
            per_copy = v["n_ranks"] * (1 + piece) + 3 * piece + 2 * (2 + v["n_ranks"])
            return v["n_copies"] * per_copy + piece + _exchange(v) + _up(v["n_lines"], size) + v["n_ranks"]
        case "all_gather":
            n_fours = v["width"] * v["most_lists"] * TOP_K // 2
            return 2 * v["n_copies"] * (_up(_up(n_fours, dispatch.groups[0]), size) + 1 + v["n_ranks"]) + _exchange(v)
        case "argmax":
            return _up(v["n_vocab"], 8 * size) + size.bit_length()
        case "attention" | "attention_fused":
            return _attention(v, subgroup_size, n_keys)
        case "attention_tiled":
            load = _up(KV_BLOCK * v["head_dim"] // 8, size)
            row_lanes = max(size // 64, 1)
            per_block = 3 + load + _up(v["matrix_n"], row_lanes)
            store = v["head_dim"] // 32 * (1 + _up(8 * v["matrix_m"], subgroup_size))
            return 2 * (2 + load + MAX_NARROW) + _up(n_keys, KV_BLOCK) * per_block + v["matrix_n"] + store
        case "begin_step":
            fours = TABLE_WORD // 4 + _up(2 * MAX_NARROW * _up(n_keys, KV_BLOCK), 4)
            return _up(v["chain_words"] // 4, size) + _up(fours, size)
        case "convolution":
            return 0
        case "copy_words":
            return _up(v["n_words"], n)
        case "delta_net_fused":
            return 2 * _up(v["head_dim"], size) + size // subgroup_size + v["most_polls"]
        case "delta_net" | "mamba2":
            return MAX_ROWS
        case "delta_net_chunks":  # by matrices; only tests run loops in their place
            return _up(MAX_ROWS, 32) * (16 + _up(1024 + 64 * v["columns"], size))
        case "embed":
            return table + _up(v["columns"], n)
        case "gated_norm":
            sums = 0 if v["group"] == v["span"] or v["normed_columns"] else 32 * (1 + v["group"])
            return _up(v["span"], size) + size // subgroup_size + _up(v["span"] // 4, size) * (1 + sums)
        case "gated_squares":
            return _up(v["columns"], size) + size // subgroup_size
        case "expert_matmul":
            matrices = v["tile_rows"] // v["matrix_m"] * (v["tile_tokens"] // v["matrix_n"])
            stores = matrices * (1 + _up(v["matrix_m"] * v["matrix_n"] // 4, subgroup_size))
            return table + _up(v["columns"] // 32, v["steps_ahead"]) + stores
        case "expert_matvec":
            return table + _up(v["columns"] // 32, subgroup_size)
        case "expert_tiles":
            n_slots = MAX_ROWS * v["n_used"]
            own = v["n_experts"] + _up(n_slots, v["tile_size"]) + v["n_tiles"] + 3
            return _up(v["n_experts"], size) * (1 + own) + 2 * _up(n_slots, size)
        case "route":
            return _up(v["n_experts"], size) + _routing(v)
        case "route_fused":
            dots = _up(v["columns"] // 4, 16 * subgroup_size)
            return dots + _up(v["n_experts"], size) + _routing(v) + v["most_polls"]
        case "shift_hidden":
            return _up(v["columns"], n)
        case "mask_logits" | "read_logits" | "softcap":
            return _up(v["n_vocab"], n)
        case "move_rows":
            return _up(v["columns"], n)
        case "matmul_narrow":
            steps = _up(_up(v["columns"] // 32, v["n_splits"]), v["steps_ahead"])
            fours = v["matrix_m"] * v["matrix_n"] * v["token_tiles"] // 4
            norms = _up(v["columns"] // (4 * v["matrix_m"]), subgroup_size)
            return table + v["norms"] * norms + 33 * steps + 1 + _up(fours, size)
        case "matrix_layout":
            return 32
        case "matmul":
            return table + _up(v["columns"] // 32 // v["n_parts"], v["steps_ahead"])
        case "matmul_float":
            return _up(v["columns"], 128) + _up(32 * v["lane_rows"] * v["lane_tokens"], size)
        case "matvec":
            return table + _up(v["columns"] // 32, subgroup_size)
        case "matvec_fused":
            portions = _up(_up(v["n_y_rows"], v["rows_per_subgroup"]), n // subgroup_size)
            loads = 3 if v["norms"] == 2 else 1
            source = table + loads * (max(_up(v["n_columns"] // 4, size) - 8, 0) + size // subgroup_size)
            polls = v["most_polls"] * (1 + (v["n_slots"] > 0))  # an early wait for the source
            return source + portions * portion_rounds(v["n_columns"], v["unroll"], subgroup_size) + polls
        case "read_bandwidth":
            return _up(v["n_fours"], 8 * n) + 8
        case "head_norm":
            return 3 * _up(max(v["q_columns"], v["k_columns"]) // 4, size) + 2 * (size // subgroup_size)
        case "latent_rope":
            return 2 * _up((v["kv_rank"] + v["rope_dims"]) // 4, size) + size // subgroup_size
        case "norm":
            return 3 * _up(v["columns"] // 4, size) + 2 * (size // subgroup_size) + v["most_polls"]
        case "sample":
            merges = sum(3 + _up(m * TOP_K, size) + 6 * (2 + _up(m * TOP_K // 2, size)) for m in (16, 8, 4, 2, 1))
            n_lists = v["n_lists"] or _up(v["n_vocab"], TOP_LOGITS)
            return _up(n_lists, 31) * (3 + _up(32 * TOP_K, size) + merges) + 2 * TOP_K
        case "score":
            return 2 * (_up(v["n_vocab"], size) + size.bit_length())
        case "split_planes":
            return _up(MOST_PARTS * v["n_units"], n)
        case "top_logits":
            share = _up(TOP_LOGITS, size)
            return 2 * share + size + _up(TOP_K * share, size) * (2 + TOP_K * share)
        case "rope" | "activate" | "expert_sum" | "sum_parts":
            return 0
    raise NotImplementedError(kernel)


def _routing(v: dict[str, int]) -> int:
    """Of shaders/lib/routing.glsl."""
    n, size, n_groups = v["n_experts"], v["local_size"], v["n_groups"]
    fours = _up(n, 4) + 1
    groups = _up(n_groups, size) * (2 + n // n_groups) + _up(n, size) * (2 + n_groups)
    return 2 * fours + _up(4 * fours, size) * (4 + fours) + 3 * _up(v["n_used"], size) + groups


def _exchange(v: dict[str, int]) -> int:
    """Of shaders/lib/exchange.glsl, on a device that polls in place."""
    return _up(MOST_RANKS * v["n_lines"], v["local_size"]) + v["polls_in_place"] + v["n_ranks"]


def portion_rounds(n_columns: int, unroll: int, subgroup_size: int) -> int:
    """Rounds of matvec_fused for the rows that a subgroup computes together."""
    return 2 + _up(n_columns // 32, unroll * subgroup_size)


def _attention(v: dict[str, int], subgroup_size: int, n_keys: int) -> int:
    size, tokens = v["local_size"], v.get("tokens_per_workgroup", 1)
    teams, queries = size // v["lanes"], tokens * v["heads_per_workgroup"]
    out_fours = queries * v["head_dim"] // 4
    outputs = _up(out_fours, size)
    parts = v.get("n_parts", 1)
    # parts are of whole steps, and few tokens make one part
    keys = n_keys if parts == 1 else max(_up(n_keys, parts), 2 * 64)
    walk = tokens * (2 + MAX_NARROW) + _up(keys, v["keys_at_once"] * teams) + 1
    merge = _up(teams * queries, size) * (2 + teams) + max(outputs, 8 * _up(out_fours, 8 * size)) * (3 + 2 * teams)
    if "n_parts" not in v:
        n_parts = v["most_parts"]
        return walk + n_parts * (2 + merge + outputs * (1 + 3 * (1 + teams))) + outputs * (3 + _up(n_parts, 8))
    norms = _up(v["heads_per_workgroup"] + 1, size // subgroup_size) * (2 + _up(v["head_dim"], subgroup_size))
    rope = norms + outputs + _up(v["head_dim"] // 2, size)
    slices = max(size // out_fours, 1)
    leave = outputs * (4 + 3 * teams)
    shares = queries * (3 + 2 * _up(MAX_PARTS, subgroup_size) + 8)
    sums = _up(out_fours * slices, size) * (2 + _up(MAX_PARTS, 8 * slices)) + outputs * (2 + slices)
    return walk + merge + rope + leave + shares + sums + v["most_polls"]


def _up(n: int, step: int) -> int:
    return -(-n // step)
