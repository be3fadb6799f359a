"""Times attention of steps of several sequences on a device, by rows, depth and choices; needs no model.

    python scripts/attention_times.py [--device NAME] [--depths 512,4096] [--rows 1,4,8,32] [--layers 16]

Every row is a sequence of its own. "one": a workgroup takes all keys of a few queries, as before they were shared.
"shared": as the table of choices has it. GB/s is of
the keys and values that are read. The other columns are shared attention with one choice changed. Microseconds a layer;
layers are timed in turn, so that keys come from memory.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from vkllm.gpu.device.kompute import Device, Dispatch
from vkllm.gpu.measure.timing import pass_s
from vkllm.gpu.program import attention_parts
from vkllm.gpu.program.attention_operations import AttentionOperations
from vkllm.gpu.program.buffers import Activation
from vkllm.gpu.program.choices import Tuning, tuning
from vkllm.gpu.program.fitting import fitted
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK, MAX_NARROW
from vkllm.gpu.program.step import Part, StepSlots
from vkllm.model.ops import Attention

N_HEADS, N_KV_HEADS, HEAD_DIM = 32, 8, 128
"""Llama 3 8B."""

CHANGES: dict[str, dict[str, int]] = {
    "4 keys": {"keys_at_once": 4},
    "256 lanes": {"attention_size": 256},
    "4 parts": {"log2_parts": 2},
    "16 parts": {"log2_parts": 4},
    "64 keys a part": {"part_keys": 64},
    "256 keys a part": {"part_keys": 256},
}


class Case:
    """Buffers of a model's attention, and steps of one row of each of n_rows sequences."""

    def __init__(self, device: Device, n_layers: int, n_rows: int, n_depth: int) -> None:
        self.device, self.n_layers, self.n_rows = device, n_layers, n_rows
        n_blocks = -(-(n_depth + 1) // KV_BLOCK)
        cache_words = n_rows * n_blocks * KV_BLOCK * N_KV_HEADS * HEAD_DIM // 2
        width, size = N_HEADS * HEAD_DIM, MAX_NARROW * N_HEADS * HEAD_DIM
        self.caches = [tuple(device.buffer(cache_words) for _ in range(2)) for _ in range(n_layers)]
        y = Activation(device.buffer(size), device.buffer(size // 2), device.buffer(size // 16))
        n_partials = 64 * MAX_NARROW * N_HEADS * (HEAD_DIM + 4)
        arrived, zeros = device.buffer(MAX_NARROW * N_HEADS), device.buffer(MAX_NARROW * N_HEADS, is_host=True)
        copy = KERNELS["copy_words"]
        device.run(
            [device.dispatch(copy, (zeros, arrived), constants=(64,), groups=(16, 1), push=(zeros.n_words, 0, 0))]
        )
        self.buffers: Any = SimpleNamespace(
            activations={"q": Activation(device.buffer(size)), "y": y},
            caches_of=lambda layer, unread: self.caches[layer],
            tables=[0] * n_layers, n_ctx=max(n_depth + 1, 4096), partials=device.buffer(n_partials), first_partial=0,
            arrived=arrived, type_k="f16", type_v="f16", vectors={}, width=width,
        )  # fmt: skip
        slots = StepSlots(device, 1, n_rows * n_blocks)
        tables = [range(i * n_blocks, (i + 1) * n_blocks) for i in range(n_rows)]
        slots.write(0, [Part(i, [0], n_depth, list(table)) for i, table in enumerate(tables)])
        self.step = device.buffer(slots.slot_words)
        words = slots.slot_words
        device.run(
            [device.dispatch(copy, (slots.buffer, self.step), constants=(64,), groups=(64, 1), push=(words, 0, 0))]
        )

    def seconds(self, choices: Tuning, *, is_shared: bool = True) -> float:
        """Seconds of a layer."""
        operations = AttentionOperations(self.device, self.buffers, self.step, choices)
        return (
            pass_s(self.device, [self._layer(operations, i, is_shared) for i in range(self.n_layers)]) / self.n_layers
        )

    def _layer(self, operations: AttentionOperations, layer: int, is_shared: bool) -> Dispatch:
        op = Attention(
            output="y", width=N_HEADS * HEAD_DIM, input="q", layer=layer, n_heads=N_HEADS, n_kv_heads=N_KV_HEADS,
            head_dim=HEAD_DIM, scale=HEAD_DIM**-0.5, cache_layer=layer, value_dim=HEAD_DIM,
        )  # fmt: skip
        dispatch = operations.attention(op, self.n_rows)
        if is_shared:
            return dispatch
        names = dispatch.kernel.constants
        constants = [1 if name == "n_sharing" else dispatch.values[name] for name in names]
        n_groups = N_HEADS // dispatch.values["heads_per_workgroup"]
        buffers = operations.__dict__["_buffers"]
        q, y, (keys, values) = buffers.activations["q"].values, buffers.activations["y"], self.caches[layer]
        bound = (q, keys, values, y.values, y.q16, y.scales, self.step, q, q, buffers.partials, buffers.arrived)
        return self.device.dispatch(
            KERNELS["attention"], bound, constants=tuple(constants), groups=(n_groups, self.n_rows)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--depths", default="512,4096")
    parser.add_argument("--rows", default="1,2,4,8,16,32")
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()
    device = Device(args.device)
    choices = fitted(tuning(device.info), device.info, N_HEADS // N_KV_HEADS, HEAD_DIM)
    print(f"{device.info.name}; us a layer, 8B")
    print(f"{'depth':>6} {'rows':>4} {'one':>8} {'shared':>8} {'GB/s':>6}  " + "  ".join(CHANGES))
    log2_parts = attention_parts.LOG2_PARTS
    for n_depth in map(int, args.depths.split(",")):
        for n_rows in map(int, args.rows.split(",")):
            case = Case(device, args.layers, n_rows, n_depth)
            one, shared = case.seconds(choices, is_shared=False), case.seconds(choices)
            n_bytes = n_rows * (n_depth + 1) * 2 * N_KV_HEADS * HEAD_DIM * 2
            others = []
            for name, change in CHANGES.items():
                changed = {key: value for key, value in change.items() if key != "log2_parts"}
                attention_parts.LOG2_PARTS = change.get("log2_parts", log2_parts)
                seconds = case.seconds(replace(choices, **changed))  # type: ignore[arg-type]
                others.append(f"{1e6 * seconds:{len(name)}.1f}")
                attention_parts.LOG2_PARTS = log2_parts
            numbers = f"{1e6 * one:8.1f} {1e6 * shared:8.1f} {n_bytes / shared / 1e9:6.0f}"
            print(f"{n_depth:6} {n_rows:4} {numbers}  " + "  ".join(others), flush=True)


if __name__ == "__main__":
    main()
