"""A model's memory on a device: weights, key/value caches, activations.

Allocates and fills it once, at load. Knows which activations exist and which weights are stacked, not what is
computed with them (`gpu/program/operations.py`) or when (`gpu/program/program.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vkllm.errors import OutOfDeviceMemory
from vkllm.formats.gguf import TensorInfo, read_tensor
from vkllm.formats.quants import BLOCK, dequantize
from vkllm.formats.tensor_bytes import SharedReads
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.layer.memory import LayerTier
from vkllm.gpu.program.fragments import most_words
from vkllm.gpu.program.kernels import KV_BLOCK, MAX_NARROW, MAX_ROWS
from vkllm.gpu.program.step import N_SLOTS
from vkllm.gpu.program.weights import Tensor, Uploader, WeightPlanes
from vkllm.model.expert_ops import ExpertMatvec, Route
from vkllm.model.graph import loaded, widths
from vkllm.model.memory.limits import Tier
from vkllm.model.memory.needs import CACHE_TYPES, lends_to_logits, products_inputs, whole_blocks, widest_of_layers
from vkllm.model.memory.placement import MatrixRows
from vkllm.model.memory.plan import MemoryPlan, PlanOptions
from vkllm.model.memory.states import slot_words
from vkllm.model.ops import Attention, Embed, HeadNormalization, Matvec, Norm, Op, Rotation
from vkllm.model.reference import query_factors, rope_table
from vkllm.model.spec import ModelSpec, QueryTemperature, Rope
from vkllm.model.state_ops import Convolution, DeltaNetStep, GatedNorm, LatentRotation, Mamba2Step

Floats = npt.NDArray[np.float32]

HEAD_ROWS = MAX_NARROW
"""Most rows whose logits the device holds at once."""


LAYER_TIERS: dict[Tier, LayerTier] = {Tier.LOCAL: "local", Tier.SHARED: "host", Tier.HOST: "host"}
"""What the layer calls the plan's tiers: SHARED is an APU's other heap, which is system memory too."""


@dataclass(frozen=True)
class Activation:
    """(MAX_ROWS, columns) float32, and the same as q16 blocks where a quantized matvec reads it."""

    values: Buffer
    q16: Buffer | None = None
    scales: Buffer | None = None


class ModelBuffers:
    """Everything that the operations of a model bind, besides the step.

    activations: by name in the graph. vectors: weights and biases of norms. biases: of stacked matrices, a number for
    each row. expert_scales: of stacked matrices of experts, a number for each expert. rope_tables: of each kind of
    rotation. head_weights: of a head's dimensions, queries' and then keys'.
    query_factors: of each kind, by position. matrices: planes by the names of the tensors that are stacked,
    several where formats or tiers differ. caches: keys and values of each layer, as far as it has them.
    n_ctx: tokens of a sequence. tables: which words of the table of blocks each layer reads; `TABLE` in
    shaders/lib/kvcache.glsl.
    partials: where attention leaves parts of its results in narrow steps, from word first_partial on. arrived: a
    number for each row and head of these steps, 0 between dispatches.
    states: of each layer plan.n_state_slots slots, if it has a state.
    received, sent: of a part of a model's layers, the rows of the residual stream on the host, (N_SLOTS, MAX_ROWS,
    d_model).
    moved_bytes: planned for the device's own memory, but refused there by the driver.
    """

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        plan: MemoryPlan,
        options: PlanOptions,
        on_bytes: Callable[[int], None],
        reads: SharedReads | None = None,
    ) -> None:
        """reads: of the file, shared with other ranks. Raises OutOfDeviceMemory, DeviceError or ModelFileError."""
        self.device = device
        self.spec = spec
        self.n_ctx = plan.n_ctx
        windows = [layer.window > 0 for layer in spec.all_layers]
        self.tables = [1 + has_window if any(windows) else 0 for has_window in windows]
        self.type_k, self.type_v = options.type_k, options.type_v
        self.moved_bytes = 0
        self._plan = plan
        self._spill_tier = plan.tiers[-1].tier
        self._parts: Buffer | None = None
        self.activations = self._allocate_activations()
        self.partials, self.first_partial = self._free_in_narrow_steps()
        self.arrived = device.buffer(MAX_NARROW * max((layer.n_heads for layer in spec.all_layers), default=1))
        self.caches = [self._caches(number, tier) for number, tier in enumerate(plan.cache_tiers)]
        self.states = {
            number: self._allocate(plan.n_state_slots * slot_words(layer)[1], tier)
            for number, (layer, tier) in enumerate(zip(spec.all_layers, plan.cache_tiers, strict=True))
            if slot_words(layer)[1]
        }
        n_moved = N_SLOTS * MAX_ROWS * spec.d_model
        self.received = device.buffer(n_moved, tier="readback") if spec.receives else None
        self.sent = device.buffer(n_moved, tier="readback") if spec.sends else None
        self.vectors: dict[str, Buffer] = {}
        self.biases: dict[tuple[str, ...], Buffer] = {}
        self.expert_scales: dict[tuple[str, ...], Buffer] = {}
        self.rope_tables: dict[Rope, Buffer] = {}
        self.head_weights: dict[tuple[str, ...] | None, Buffer] = {}
        self.query_factors: dict[QueryTemperature, Buffer] = {}
        self.matrices: dict[tuple[str, ...], list[WeightPlanes]] = {}
        self._load(path, tensors, on_bytes, reads)

    def _allocate(self, n_words: int, tier: Tier) -> Buffer:
        """A buffer in a tier, or in the last tier if there is no room after all: budgets are the driver's estimate."""
        try:
            return self.device.buffer(n_words, tier=LAYER_TIERS[tier])
        except OutOfDeviceMemory:
            if tier is self._spill_tier:
                raise
            self.moved_bytes += 4 * n_words
            return self.device.buffer(n_words, tier=LAYER_TIERS[self._spill_tier])

    def _caches(self, number: int, tier: Tier) -> tuple[Buffer, ...]:
        has_window = self.spec.all_layers[number].window > 0
        n_tokens = KV_BLOCK * (self._plan.n_window_blocks if has_window else self._plan.n_blocks)
        widths = zip(self.spec.all_layers[number].cached_widths, (self.type_k, self.type_v), strict=False)
        return tuple(self._allocate(n_tokens * n // BLOCK * CACHE_TYPES[name] // 4, tier) for n, name in widths)

    def caches_of(self, layer: int, unread: Buffer) -> tuple[Buffer, Buffer]:
        """Keys and values of a layer; `unread`, to be bound, in place of what it does not have."""
        keys, values, *_ = (*self.caches[layer], unread, unread)
        return keys, values

    def _allocate_activations(self) -> dict[str, Activation]:
        activations, tier = {}, self._plan.arena_tier
        multiplied = products_inputs(self.spec)
        lends = lends_to_logits(self.spec, MAX_ROWS, HEAD_ROWS)
        for name, columns in widths(self.spec).items():
            if name == "logits" and lends:
                continue
            n_rows = HEAD_ROWS if name in ("final", "logits") else MAX_ROWS
            n_blocks = n_rows * columns // BLOCK
            values = self._allocate(n_rows * columns, tier)
            if name in multiplied:
                q16 = self._allocate(max(16 * n_blocks, most_words(columns)), tier)
                activations[name] = Activation(values, q16, self._allocate(2 * n_blocks, tier))
            else:
                activations[name] = Activation(values)
        if lends:
            activations["logits"] = Activation(activations[widest_of_layers(self.spec)].values)
        return activations

    def room_for_parts(self, n_bytes: int) -> Buffer | None:
        """Memory for the parts of products (column_parts); None if there are none, or no room: it comes from what plans
        leave free."""
        if not n_bytes or self._parts is None or 4 * self._parts.n_words < n_bytes:
            self._parts = None
            try:
                self._parts = self.device.buffer(n_bytes // 4) if n_bytes else None
            except OutOfDeviceMemory:
                return None
        return self._parts

    def _free_in_narrow_steps(self) -> tuple[Buffer, int]:
        """The largest buffer that layers of narrow steps leave unused, from a word on: rows of an activation behind
        theirs."""
        name = widest_of_layers(self.spec)
        return self.activations[name].values, MAX_NARROW * widths(self.spec)[name]

    def _load(
        self,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        on_bytes: Callable[[int], None],
        reads: SharedReads | None,
    ) -> None:
        spec = self.spec

        def vector(name: str) -> Floats:
            info = tensors[name]
            return dequantize(read_tensor(path, info, reads), info.format, info.shape)

        with closing(Uploader(self.device, on_bytes, reads)) as uploader:
            for op in loaded(spec):
                self._load_vectors(op, vector, uploader)
                if isinstance(op, Embed | Matvec | ExpertMatvec) and op.is_padded:
                    self.matrices[op.weights] = [self._padded(op, vector, uploader)]
                elif isinstance(op, Embed | Matvec | ExpertMatvec) and op.weights not in self.matrices:
                    self.matrices[op.weights] = [
                        uploader.matrix(_tensors(path, tensors, rows), partial(self._allocate, tier=rows.tier))
                        for rows in self._plan.matrices[op.weights]
                    ]
            for rope in spec.ropes:
                factors = rope.factors_in(self._plan.n_ctx)
                table = rope_table(rope, whole_blocks(self.n_ctx), None if factors is None else vector(factors))
                self.rope_tables[rope] = self._upload(uploader, table)
            uploader.words(np.zeros(self.arrived.n_words, np.uint32), self.arrived)
            uploader.finish()

    def _load_vectors(self, op: Op, vector: Callable[[str], Floats], uploader: Uploader) -> None:
        """Whatever an operation reads besides matrices. vector(name): a tensor of the file as float32."""
        match op:
            case Norm() | Attention() | Convolution() | DeltaNetStep() | Mamba2Step() | GatedNorm():
                for name in op.tensors():
                    self.vectors[name] = self._upload(uploader, vector(name))
            case LatentRotation():
                self.vectors[op.weight] = self._upload(uploader, vector(op.weight))
            case Matvec() if op.has_bias:
                rows = zip(op.biases, op.n_rows, strict=True)
                biases = [np.zeros(n, np.float32) if name is None else vector(name) for name, n in rows]
                self.biases[op.weights] = self._upload(uploader, _stacked(biases, op.n_parts, op.row_padding))
            case ExpertMatvec():
                self._load_expert_vectors(op, vector, uploader)
            case Route() if op.bias is not None:
                self.vectors[op.bias] = self._upload(uploader, vector(op.bias))
            case HeadNormalization() | Rotation() if op.weights is not None:
                weights = np.concatenate([vector(name).reshape(-1) for name in op.weights])
                self.head_weights[op.weights] = self._upload(uploader, weights)
        if isinstance(op, Rotation | LatentRotation) and op.temperature and op.temperature not in self.query_factors:
            factors = query_factors(op.temperature, whole_blocks(self.n_ctx))
            self.query_factors[op.temperature] = self._upload(uploader, factors)

    def _load_expert_vectors(self, op: ExpertMatvec, vector: Callable[[str], Floats], uploader: Uploader) -> None:
        """Biases of all experts, in the order of the rows of the stacked matrices, and their scales."""
        shapes = [(op.n_experts, n_rows) for n_rows in op.n_rows]
        if any(op.biases):
            biases = [
                np.zeros(shape, np.float32) if name is None else vector(name)
                for name, shape in zip(op.biases, shapes, strict=True)
            ]
            stacked = _stacked(biases, op.n_experts * op.n_parts, op.row_padding)
            self.biases[op.weights] = self._upload(uploader, stacked)
        if any(op.scales):
            scales = [np.ones(op.n_experts, np.float32) if name is None else vector(name) for name in op.scales]
            self.expert_scales[op.weights] = self._upload(uploader, np.concatenate(scales))

    def _padded(
        self, op: Embed | Matvec | ExpertMatvec, vector: Callable[[str], Floats], uploader: Uploader
    ) -> WeightPlanes:
        """Stacked matrices of plain numbers, as float32, with zeros behind their rows and columns."""

        def matrix(name: str) -> Floats:
            values = vector(name)
            columns = values.shape[-1]
            n_parts, row_padding = 1, 0
            if not isinstance(op, Embed):
                n_parts, row_padding = op.n_parts * (values.shape[0] if values.ndim == 3 else 1), op.row_padding
            padding = (0, 0), (0, row_padding), (0, op.column_padding)
            return np.pad(values.reshape(n_parts, -1, columns), padding).reshape(-1, columns + op.column_padding)

        values = np.concatenate([matrix(name) for name in op.weights])
        plane = self._allocate(values.size, self._plan.matrices[op.weights][0].tier)
        uploader.words(values, plane)
        return WeightPlanes(plane, plane, "F32", *values.shape)

    def _upload(self, uploader: Uploader, values: Floats) -> Buffer:
        buffer = self._allocate(values.size, self._plan.arena_tier)
        uploader.words(values, buffer)
        return buffer


def _stacked(biases: list[Floats], n_parts: int, row_padding: int) -> Floats:
    """Biases of stacked matrices, with zeros behind each of the n_parts of a matrix, where rows are padded."""
    parts = (bias.reshape(n_parts, -1) for bias in biases)
    return np.concatenate([np.pad(part, ((0, 0), (0, row_padding))).reshape(-1) for part in parts])


def _tensors(path: Path, tensors: Mapping[str, TensorInfo], part: MatrixRows) -> list[Tensor]:
    """The rows of a part, by the tensors that they come from."""
    found = []
    start = 0  # of a tensor in the stack
    for name in part.stack.tensors:
        info = tensors[name]
        first, last = max(part.first_row, start), min(part.first_row + part.n_rows, start + info.n_rows)
        if first < last:
            found.append(Tensor.whole(path, info).rows(first - start, last - first))
        start += info.n_rows
    return found
