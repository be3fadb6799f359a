"""A model on a device: its operations recorded once, replayed for every step.

Turns the graph's operations into dispatches, one method a kind, and keeps a recording for every step width,
kind of result and slot. What changes from token to token is in the step buffer (`gpu/step.py`), so no Python
runs per layer and token. Knows nothing of requests or sampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vkllm.formats.gguf import TensorInfo, map_tensor
from vkllm.formats.quants import BLOCK, dequantize, weight_format
from vkllm.gpu.device import Buffer, Device, Dispatch, Recording
from vkllm.gpu.kernels import (
    ATTENTION_SPLIT,
    KERNELS,
    KV_BLOCK,
    LAST_ROW,
    MATMUL_TILE_ROWS,
    MAX_ROWS,
    TOP_K,
    TOP_LOGITS,
)
from vkllm.gpu.step import Draw, Row, StepSlots
from vkllm.gpu.tuning import tuning
from vkllm.gpu.weights import Tensor, Uploader, WeightPlanes
from vkllm.model.graph import Op, decoder, head, widths
from vkllm.model.plan import DeviceLimits, plan
from vkllm.model.reference import rope_table
from vkllm.model.spec import ModelSpec

Floats = npt.NDArray[np.float32]
Result = Literal["none", "token", "sampled", "logits"]

WIDTHS = (1, 8, 64, 256, MAX_ROWS)
"""Numbers of rows that steps are recorded for; a step runs in the smallest that holds it."""

MATMUL_SIZE = 256
"""Invocations of a workgroup of `matmul`."""

HEAD_ROWS = 8
"""Rows whose logits there is room for at once."""

N_SLOTS = 3
"""Steps that may be in flight."""


@dataclass(frozen=True)
class Activation:
    """(MAX_ROWS, columns) float32, and the same as q16 blocks where a quantized matvec reads it."""

    values: Buffer
    q16: Buffer | None = None
    scales: Buffer | None = None


@dataclass(frozen=True)
class Submitted:
    """A step on its way. submitted_s: when, by time.perf_counter, after it was recorded."""

    ticket: int
    slot: int
    submitted_s: float


class Program:
    """A loaded model. tensors: the file's tensor table. on_bytes: called with bytes loaded since the last call."""

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        n_ctx: int,
        on_bytes: Callable[[int], None] = lambda n_bytes: None,
    ) -> None:
        """Raises OutOfDeviceMemory before anything is loaded, DeviceError or ModelFileError while loading."""
        info = device.info
        local = [heap.budget_bytes or heap.size_bytes for heap in info.heaps if heap.is_device_local]
        limits = DeviceLimits(max(local), info.max_binding_bytes)
        self.plan = plan(spec, tensors, limits, n_ctx, MAX_ROWS, HEAD_ROWS)
        self.free_bytes = limits.memory_bytes - self.plan.total_bytes
        self.device = device
        self.spec = spec
        self._tuning = tuning(info)
        self._local_size = self._tuning.local_size
        self._max_shared_bytes = info.max_shared_bytes
        self.n_ctx = n_ctx
        self.n_blocks = -(-n_ctx // KV_BLOCK)
        self._slots = StepSlots(device, N_SLOTS, self.n_blocks)
        self._next_token = device.buffer(1)
        self._chosen = device.buffer(N_SLOTS, is_host=True)
        self._n_lists = -(-spec.n_vocab // TOP_LOGITS)
        self._largest = device.buffer(2 * TOP_K * self._n_lists)
        self._host_logits = device.buffer(spec.n_vocab, is_host=True)
        self._activations = self._allocate_activations()
        cache_words = self.n_blocks * KV_BLOCK * spec.n_kv_heads * spec.head_dim // 2
        self._caches = [(device.buffer(cache_words), device.buffer(cache_words)) for _ in range(spec.n_layers)]
        self._max_splits = -(-n_ctx // ATTENTION_SPLIT)
        self._partials = device.buffer(spec.n_heads * self._max_splits * (spec.head_dim + 2))
        self._vectors: dict[str, Buffer] = {}
        self._matrices: dict[tuple[str, ...], list[WeightPlanes]] = {}
        self._load(path, tensors, on_bytes)
        self._recordings: dict[tuple[int, Result, int, int], Recording] = {}
        self._dispatches: dict[tuple[Op, int, int], list[Dispatch]] = {}
        self._slot_tickets = [0] * N_SLOTS
        self._turn = 0

    # Loading

    def _allocate_activations(self) -> dict[str, Activation]:
        activations = {}
        for name, columns in widths(self.spec).items():
            n_rows = HEAD_ROWS if name in ("final", "logits") else MAX_ROWS
            n_blocks = n_rows * columns // BLOCK
            values = self.device.buffer(n_rows * columns)
            if name in ("normed", "attended", "hidden", "final"):
                q16, scales = self.device.buffer(16 * n_blocks), self.device.buffer(2 * n_blocks)
                activations[name] = Activation(values, q16, scales)
            else:
                activations[name] = Activation(values)
        return activations

    def _load(self, path: Path, tensors: Mapping[str, TensorInfo], on_bytes: Callable[[int], None]) -> None:
        spec, uploader = self.spec, Uploader(self.device, on_bytes)

        def vector(name: str) -> Floats:
            info = tensors[name]
            return dequantize(map_tensor(path, info), info.format, info.shape)

        for op in (*decoder(spec), *head(spec)):
            if op.kind == "rms_norm":
                weight = vector(op.weights[0])
                self._vectors[op.weights[0]] = self.device.buffer(len(weight))
                uploader.words(weight, self._vectors[op.weights[0]])
            elif op.weights and op.weights not in self._matrices:
                parts = [_tensor(path, tensors[name]) for name in op.weights]
                self._matrices[op.weights] = [uploader.matrix(list(group)) for group in _stackable(parts)]
        factors = vector("rope_freqs.weight") if spec.has_rope_freqs else None
        table = rope_table(spec, self.n_blocks * KV_BLOCK, factors)
        self._vectors["rope_table"] = self.device.buffer(table.size)
        uploader.words(table, self._vectors["rope_table"])
        uploader.finish()

    # Running

    def submit(
        self,
        rows: Sequence[Row],
        block_table: Sequence[int],
        result: Result,
        *,
        is_prompt: bool = False,
        draw: Draw | None = None,
    ) -> Submitted:
        """Submits a step of one sequence and returns at once.

        is_prompt: rows of a prompt, which are computed alike however they are cut into steps.

        result: what to make of the last row: "token" chooses the likeliest on the GPU, "sampled" draws one there
        as `draw` says, "logits" brings all to the host. At most N_SLOTS steps are in flight; one more waits for the
        oldest.
        """
        assert (draw is not None and 0 < draw.top_k <= TOP_K) if result == "sampled" else draw is None
        # decode's own kernels may round differently, so no prompt row may take them
        least = WIDTHS[1] if is_prompt and self._tuning.has_decode_kernels else len(rows)
        width = next(width for width in WIDTHS if width >= max(least, len(rows)))
        slot, self._turn = self._turn, (self._turn + 1) % N_SLOTS
        recording = self._recording(width, result, slot, self._n_splits(rows) if width == 1 else 0)
        self.device.wait(self._slot_tickets[slot])
        self._slots.write(slot, rows, block_table, draw)
        self._slot_tickets[slot] = self.device.submit(recording)
        return Submitted(self._slot_tickets[slot], slot, time.perf_counter())

    def wait(self, submitted: Submitted) -> None:
        """Waits for a step."""
        self.device.wait(submitted.ticket)

    def token(self, submitted: Submitted) -> int:
        """Waits for a "token" or "sampled" step and returns what it chose."""
        self.device.wait(submitted.ticket)
        assert self._chosen.words is not None
        return int(self._chosen.words[submitted.slot])

    def logits(self, submitted: Submitted) -> Floats:
        """Waits for a "logits" step and returns a copy of its logits (V,)."""
        self.device.wait(submitted.ticket)
        assert self._host_logits.words is not None
        return self._host_logits.words[: self.spec.n_vocab].view(np.float32).copy()

    def head_of(self, first_row: int) -> tuple[list[Dispatch], Buffer]:
        """Dispatches that make the logits of HEAD_ROWS rows of the last step, from first_row on; (HEAD_ROWS, V)."""
        norm, *projection = (d for op in head(self.spec) for d in self._dispatches_of(op, HEAD_ROWS, 0))
        return [norm.with_push(first_row), *projection], self._activations["logits"].values

    # Recording

    def _n_splits(self, rows: Sequence[Row]) -> int:
        """Splits of the context that attention is recorded for: a power of two, so that there are few recordings."""
        needed = -(-(rows[-1].position + 1) // ATTENTION_SPLIT)
        if needed <= self._tuning.loop_splits:
            return 0  # so few that one workgroup after another is quicker than a merge
        return min(1 << (needed - 1).bit_length(), self._max_splits)

    def _recording(self, width: int, result: Result, slot: int, n_splits: int) -> Recording:
        key = (width, result, slot, n_splits)
        if key not in self._recordings:
            dispatches = [self._begin_step(slot)]
            ops = list(decoder(self.spec))
            while ops:
                op = ops.pop(0)
                if width == 1 and ops and self._can_fuse(op, ops[0]):
                    dispatches += self._fused_dispatches_of(op, ops.pop(0))
                else:
                    dispatches += self._dispatches_of(op, width, n_splits)
            if result != "none":
                for op in head(self.spec):
                    dispatches += self._dispatches_of(op, 1, 0)
                dispatches += self._result(result, slot)
            self._recordings[key] = self.device.record(dispatches)
        return self._recordings[key]

    def _dispatches_of(self, op: Op, width: int, n_splits: int) -> list[Dispatch]:
        key = (op, width, n_splits if op.kind == "attention" else 0)
        if key not in self._dispatches:
            self._dispatches[key] = self._make(op, width, n_splits)
        return self._dispatches[key]

    def _can_fuse(self, first: Op, second: Op) -> bool:
        """Whether decode computes a norm or an activation inside the matvec that alone reads it."""
        if self._tuning.fused_size == 0 or first.kind not in ("rms_norm", "swiglu") or second.kind != "matvec":
            return False
        shared_bytes = widths(self.spec)[first.output] * 9 // 4 + 256  # q16 blocks and a few sums
        planes = self._matrices[second.weights]
        return all(weight_format(p.format).is_quantized for p in planes) and shared_bytes <= self._max_shared_bytes

    def _fused_dispatches_of(self, first: Op, second: Op) -> list[Dispatch]:
        key = (second, 1, 0)
        if key not in self._dispatches:
            self._dispatches[key] = self._matvec_fused(first, second)
        return self._dispatches[key]

    def _make(self, op: Op, width: int, n_splits: int) -> list[Dispatch]:
        """n_splits: of attention's context, each a workgroup; 0: a workgroup loops over all of them."""
        match op.kind:
            case "embed":
                return [self._embed(op, width)]
            case "rms_norm":
                return [self._rms_norm(op, width)]
            case "matvec":
                return self._matvec(op, width)
            case "rope":
                return [self._rope(op, width)]
            case "attention":
                return self._attention(op, width, n_splits)
            case "swiglu":
                return [self._swiglu(op, width)]

    def _begin_step(self, slot: int) -> Dispatch:
        return self.device.dispatch(
            KERNELS["begin_step"],
            (self._slots.buffer, self._next_token, self._slots.on_device),
            constants=(self._local_size,),
            push=(slot * self._slots.slot_words,),
        )

    def _embed(self, op: Op, width: int) -> Dispatch:
        (planes,) = self._matrices[op.weights]
        return self.device.dispatch(
            KERNELS["embed"],
            (planes.quants, planes.scales, self._activations[op.output].values, self._slots.on_device),
            constants=(self._local_size, planes.n_columns),
            groups=(1, width),
            weight_format=planes.format,
        )

    def _rms_norm(self, op: Op, width: int) -> Dispatch:
        x, y = self._activations[op.inputs[0]], self._activations[op.output]
        assert y.q16 is not None and y.scales is not None
        eps = int(np.float32(self.spec.norm_eps).view(np.uint32))
        return self.device.dispatch(
            KERNELS["rms_norm"],
            (x.values, self._vectors[op.weights[0]], y.values, y.q16, y.scales, self._slots.on_device),
            constants=(4 * self._local_size, self.spec.d_model, eps),
            groups=(1, width),
            push=(LAST_ROW if op.output == "final" else 0,),
        )

    def _matvec(self, op: Op, width: int) -> list[Dispatch]:
        """One dispatch a group of rows of the same format; the groups write different columns of y."""
        x, y = self._activations[op.inputs[0]], self._activations[op.output]
        add = self._activations[op.add].values if op.add else x.values  # bound, but not read, without a sum
        y_width = widths(self.spec)[op.output]
        rows, tokens, unroll = self._tuning.matvec(width)
        rows_per_group = rows * max(self._local_size // self.device.info.subgroup_size, 1)
        # logits have too few rows for a tile of matmul, and are worth the exact product
        is_tiled = width > 1 and self._tuning.has_matmul and op.output != "logits"
        dispatches: list[Dispatch] = []
        y_offset = 0
        for planes in self._matrices[op.weights]:
            if is_tiled and _suits_matmul(planes):
                dispatches.append(self._matmul(op, planes, width, y_offset, y_width))
                y_offset += planes.n_rows
                continue
            n_rows = min(planes.n_rows, y_width - y_offset)  # an embedding may have more rows than there are tokens
            is_quantized = weight_format(planes.format).is_quantized
            x_data, x_scales = (x.q16, x.scales) if is_quantized else (x.values, x.values)
            assert x_data is not None and x_scales is not None
            shape = (self._local_size, planes.n_columns, rows, tokens)  # a block of plain numbers is loads enough
            dispatches.append(
                self.device.dispatch(
                    KERNELS["matvec"],
                    (planes.quants, planes.scales, x_data, x_scales, add, y.values, self._slots.on_device),
                    constants=(*shape, int(op.add is not None), unroll if is_quantized else 1),
                    groups=(-(-n_rows // rows_per_group), -(-width // tokens)),
                    push=(n_rows, y_offset, y_width),
                    weight_format=planes.format,
                    is_independent=y_offset > 0,
                )
            )
            y_offset += n_rows
        return dispatches

    def _matmul(self, op: Op, planes: WeightPlanes, width: int, y_offset: int, y_width: int) -> Dispatch:
        x, y = self._activations[op.inputs[0]].values, self._activations[op.output].values
        tile_tokens = 128 if width > 64 else 64
        n_subgroups = MATMUL_SIZE // self.device.info.subgroup_size
        along_rows = 4 if n_subgroups == 8 else 2
        return self.device.dispatch(
            KERNELS["matmul"],
            (
                planes.quants,
                planes.scales,
                x,
                self._activations[op.add].values if op.add else x,
                y,
                self._slots.on_device,
            ),
            constants=(
                MATMUL_SIZE,
                planes.n_columns,
                tile_tokens,
                along_rows,
                n_subgroups // along_rows,
                int(op.add is not None),
            ),
            groups=(-(-planes.n_rows // MATMUL_TILE_ROWS), -(-width // tile_tokens)),
            push=(planes.n_rows, y_offset, y_width),
            weight_format=planes.format,
            is_independent=y_offset > 0,
        )

    def _matvec_fused(self, first: Op, second: Op) -> list[Dispatch]:
        """Like `_matvec` for one token, with the norm or activation before it inside."""
        source, y = self._activations[first.inputs[0]].values, self._activations[second.output].values
        norm_weight = self._vectors[first.weights[0]] if first.kind == "rms_norm" else source
        add = self._activations[second.add].values if second.add else source
        size, rows = self._tuning.fused_size, self._tuning.matvec_rows
        rows_per_group = rows * max(size // self.device.info.subgroup_size, 1)
        eps = int(np.float32(self.spec.norm_eps).view(np.uint32))
        dispatches: list[Dispatch] = []
        y_offset = 0
        for planes in self._matrices[second.weights]:
            shape = (size, planes.n_columns, rows, self._tuning.unroll)
            dispatches.append(
                self.device.dispatch(
                    KERNELS["matvec_fused"],
                    (planes.quants, planes.scales, source, norm_weight, add, y),
                    constants=(*shape, int(first.kind == "swiglu"), int(second.add is not None), eps),
                    groups=(-(-planes.n_rows // rows_per_group), 1),
                    push=(planes.n_rows, y_offset),
                    weight_format=planes.format,
                    is_independent=y_offset > 0,
                )
            )
            y_offset += planes.n_rows
        return dispatches

    def _rope(self, op: Op, width: int) -> Dispatch:
        spec, (k_cache, v_cache) = self.spec, self._caches[op.layer]
        pairs = (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim // 2
        qkv, q = self._activations[op.inputs[0]].values, self._activations[op.output].values
        is_interleaved = int(spec.rope_pairing == "interleaved")
        return self.device.dispatch(
            KERNELS["rope"],
            (qkv, self._vectors["rope_table"], q, k_cache, v_cache, self._slots.on_device),
            constants=(self._local_size, spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.rope_dims, is_interleaved),
            groups=(-(-pairs // self._local_size), width),
        )

    def _attention(self, op: Op, width: int, n_splits: int) -> list[Dispatch]:
        spec, (k_cache, v_cache) = self.spec, self._caches[op.layer]
        q, y = self._activations[op.inputs[0]], self._activations[op.output]
        assert y.q16 is not None and y.scales is not None
        outputs = (y.values, y.q16, y.scales, self._slots.on_device)
        eighths = 1 << (spec.head_dim // 8 - 1).bit_length()  # a lane takes eight dimensions
        lanes = min(eighths, self.device.info.subgroup_size)
        heads = max(n for n in (1, 2, 3, 4) if spec.n_heads // spec.n_kv_heads % n == 0)
        tokens = 1 if width == 1 else max(self._tuning.attention_queries // heads, 1)
        shape = (self._tuning.attention_size, spec.n_heads, spec.n_kv_heads, spec.head_dim)
        attention = self.device.dispatch(
            KERNELS["attention"],
            (q.values, k_cache, v_cache, self._partials, *outputs),
            constants=(*shape, lanes, heads, tokens, self._tuning.keys_at_once, int(n_splits == 0)),
            groups=(spec.n_heads // heads * max(n_splits, 1), -(-width // tokens)),
            push=(self._max_splits,),
        )
        if n_splits == 0:
            return [attention]
        merge = self.device.dispatch(
            KERNELS["attention_merge"],
            (self._partials, *outputs),
            constants=(self._local_size, spec.n_heads, spec.head_dim),
            groups=(-(-spec.n_heads * spec.head_dim // 4 // self._local_size), width),
            push=(self._max_splits,),
        )
        return [attention, merge]

    def _swiglu(self, op: Op, width: int) -> Dispatch:
        gate_up, y = self._activations[op.inputs[0]], self._activations[op.output]
        assert y.q16 is not None and y.scales is not None
        return self.device.dispatch(
            KERNELS["swiglu"],
            (gate_up.values, y.values, y.q16, y.scales, self._slots.on_device),
            constants=(self._local_size, self.spec.d_ff),
            groups=(-(-self.spec.d_ff // 4 // self._local_size), width),
        )

    def _result(self, result: Literal["token", "sampled", "logits"], slot: int) -> list[Dispatch]:
        match result:
            case "token":
                return [self._argmax(slot)]
            case "sampled":
                return self._sample(slot)
            case "logits":
                return [self._read_logits()]

    def _sample(self, slot: int) -> list[Dispatch]:
        constants = (4 * self._local_size, self.spec.n_vocab)
        top_logits = self.device.dispatch(
            KERNELS["top_logits"],
            (self._activations["logits"].values, self._largest),
            constants=constants,
            groups=(self._n_lists, 1),
        )
        sample = self.device.dispatch(
            KERNELS["sample"],
            (self._largest, self._next_token, self._chosen, self._slots.on_device),
            constants=constants,
            push=(slot,),
        )
        return [top_logits, sample]

    def _argmax(self, slot: int) -> Dispatch:
        return self.device.dispatch(
            KERNELS["argmax"],
            (self._activations["logits"].values, self._next_token, self._chosen),
            constants=(4 * self._local_size, self.spec.n_vocab),
            push=(slot,),
        )

    def _read_logits(self) -> Dispatch:
        return self.device.dispatch(
            KERNELS["copy_words"],
            (self._activations["logits"].values, self._host_logits),
            constants=(self._local_size,),
            groups=(min(1024, -(-self.spec.n_vocab // self._local_size)), 1),
            push=(self.spec.n_vocab, 0),
        )


def _suits_matmul(planes: WeightPlanes) -> bool:
    return planes.n_columns % 64 == 0 and planes.n_rows % 16 == 0


def _tensor(path: Path, info: TensorInfo) -> Tensor:
    return Tensor(map_tensor(path, info), info.format, (info.shape[0], info.shape[1]))


def _stackable(parts: Sequence[Tensor]) -> list[list[Tensor]]:
    """Groups neighbours that can be one matrix: of one format, with whole units of it before each."""
    groups: list[list[Tensor]] = []
    for part in parts:
        before = groups[-1] if groups else []
        n_values = sum(other.shape[0] * other.shape[1] for other in before)
        if before and before[0].format == part.format and n_values % weight_format(part.format).unit == 0:
            before.append(part)
        else:
            groups.append([part])
    return groups
