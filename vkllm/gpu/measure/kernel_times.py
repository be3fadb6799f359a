"""How long each kernel of a step takes at a model's shapes, and what it must read and compute in that time.

Dispatches that differ only in their layer are timed together, all layers in turn, so that weights come from memory and
not from the GPU's cache. Those of a chain, which wait for each other in the shader, are timed with barriers instead; so
the sum of the parts may be more than the whole step. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from vkllm.formats.quants import BLOCK, weight_format
from vkllm.gpu.device.kompute import Dispatch
from vkllm.gpu.measure.step_times import KernelTime, KernelWork, StepTimes
from vkllm.gpu.measure.timing import MEASURE_S, interval_s, pass_s
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LIKELIEST, N_SLOTS, Draw, Part, Result, step_width
from vkllm.model.memory.needs import CACHE_TYPES


def step_times(
    program: Program, n_rows: int, n_depth: int, block_table: Sequence[int], product_flops_per_s: float
) -> StepTimes:
    """Times a step. block_table: the cache's blocks of n_depth + n_rows tokens; what they hold of the last n_rows is
    overwritten. Nothing else may be in flight. Raises DeviceError."""
    is_prompt = n_rows > 1
    width = step_width(n_rows, is_prompt=is_prompt)
    tokens = [i % program.spec.n_vocab for i in range(n_rows)]
    part = Part(0, tokens, n_depth, block_table, results=LIKELIEST)

    def submit() -> int:
        return program.submit([part], is_prompt=is_prompt).ticket

    submits = [submit] * N_SLOTS
    whole_s = interval_s(program.device, submits, MEASURE_S)
    if whole_s < MEASURE_S / 2:  # the first steps include their recording, and there is time for more
        whole_s = interval_s(program.device, submits, MEASURE_S)
        whole_s = interval_s(program.device, submits, whole_s)

    work_of = partial(kernel_work, n_rows=n_rows, n_depth=n_depth)
    groups: dict[KernelWork, list[Dispatch]] = {}
    for dispatch in program.dispatches(width, LIKELIEST):
        groups.setdefault(work_of(dispatch), []).append(dispatch)
    counts = {work: len(dispatches) for work, dispatches in groups.items()}
    for dispatch in program.dispatches(width, [Result(Draw(1, 0, 0, 0.0, 0))]) if n_rows == 1 else ():
        groups.setdefault(work_of(dispatch), [dispatch])
    begin = program.dispatches(width)[0]
    begin_s = pass_s(program.device, [begin])
    times = []
    for work, dispatches in groups.items():
        seconds = _group_s(program, dispatches, begin, begin_s)
        times.append(KernelTime(work, counts.get(work, 0), seconds / len(dispatches)))
    return StepTimes(n_rows, n_depth, tuple(times), whole_s, product_flops_per_s)


def _group_s(program: Program, dispatches: Sequence[Dispatch], begin: Dispatch, begin_s: float) -> float:
    """Seconds of a group. begin: the first dispatch of a step, and how long it takes."""
    alone = [_alone(dispatch) for dispatch in dispatches]
    if "arrivals" not in dispatches[0].values:
        return pass_s(program.device, alone)
    # the parts of attention use a counter that the beginning of a step clears
    return max(pass_s(program.device, [begin, *alone]) - begin_s, 0.0)


def _alone(dispatch: Dispatch) -> Dispatch:
    """The same behind a barrier."""
    push = [0 if name in ("n_before", "n_awaited") else dispatch.values[name] for name in dispatch.kernel.push]
    return replace(dispatch.with_push(*push) if push else dispatch, is_independent=False)


def kernel_work(dispatch: Dispatch, n_rows: int, n_depth: int) -> KernelWork:
    """What a dispatch does in a step of n_rows with n_depth tokens cached."""
    kernel, values = dispatch.kernel.name, dispatch.values
    match kernel:
        case "matvec" | "matmul" | "matmul_float" | "matmul_narrow" | "matvec_fused":
            return _product(dispatch, n_rows)
        case "attention" | "attention_tiled" | "attention_fused":
            # each token sees those before it and itself, in its window
            window = values.get("window", 0) or n_depth + n_rows
            n_keys = sum(min(n_depth + 1 + row, window) for row in range(n_rows))
            values_per_token = values["n_kv_heads"] * values["head_dim"]
            return KernelWork(
                kernel,
                shape=_heads(values),
                n_tokens=n_rows,
                read_bytes=min(n_depth + n_rows, window + n_rows - 1)
                * values_per_token
                // BLOCK
                * _cached_block_bytes(values),
                n_flops=4 * values["n_heads"] * values["head_dim"] * n_keys,
            )
        case "rope":
            shape = _heads(values)
        case "sum_parts":
            shape = f"{values['n_weight_rows']} x {values['n_parts']}"
        case "delta_net" | "delta_net_chunks" | "delta_net_fused" | "mamba2":
            n_heads, size = values.get("n_v_heads", values.get("n_heads", 0)), values.get("d_state", values["head_dim"])
            shape = f"{n_heads} x {values['head_dim']} x {size}"
            return KernelWork(kernel, shape=shape, n_tokens=n_rows, read_bytes=4 * n_heads * values["head_dim"] * size)
        case _:
            shape = str(values.get("columns", values.get("n_vocab", "")))
    n_bytes = 4 * values["columns"] if kernel == "norm" else 0
    n_tokens = min(n_rows, dispatch.groups[1])
    return KernelWork(kernel, dispatch.weight_format or "", shape, n_tokens, n_bytes)


def _product(dispatch: Dispatch, n_rows: int) -> KernelWork:
    values, name = dispatch.values, dispatch.weight_format or "F32"
    if "gates" in values:
        n_weight_rows, columns = values["n_y_rows"] * (1 + values["gates"]), values.get("n_columns", values["columns"])
        tile = values.get("n_tokens", 1)
    else:
        n_weight_rows, columns = values["n_weight_rows"], values["columns"]
        tile = 8 * values.get("lane_tokens", 0) or values.get("tile_tokens") or values["tokens_per_workgroup"]
    n_tokens = min(n_rows, dispatch.groups[1] * tile)
    fused = {
        "norm": values.get("norms"),
        "bias": values.get("has_bias"),
        "activation": values.get("activation"),
        "sum": values["adds"],
    }
    norm_bytes = 4 * columns if fused["norm"] else 0
    return KernelWork(
        kernel=dispatch.kernel.name,
        weight_format=name,
        shape=", ".join([f"{n_weight_rows} x {columns}", *(what for what, is_there in fused.items() if is_there)]),
        n_tokens=n_tokens,
        read_bytes=4 * sum(weight_format(name).plane_words(n_weight_rows * columns)) + norm_bytes,
        n_flops=2 * n_tokens * n_weight_rows * columns,
    )


def _heads(values: dict[str, int]) -> str:
    return f"{values['n_heads']} / {values['n_kv_heads']} x {values['head_dim']}"


def _cached_block_bytes(values: dict[str, int]) -> int:
    """Bytes of 32 cached keys and of 32 values."""
    return sum(CACHE_TYPES["q8_0" if values[key] else "f16"] for key in ("k_q8_0", "v_q8_0"))
