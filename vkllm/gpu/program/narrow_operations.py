"""Products of steps of 2 to MAX_NARROW rows by cooperative matrices (shaders/matmul_narrow.comp), and what becomes one
dispatch with them: activations, RMS norms between two products, rotations with the store into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from vkllm.formats.quants import BLOCK, weight_format
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.kernels import ACTIVATIONS, KERNELS, MAX_NARROW
from vkllm.gpu.program.narrow_forms import narrow_splits, narrow_steps_ahead
from vkllm.gpu.program.stored_forms import FRAGMENTS, StoredForms
from vkllm.gpu.program.weights import WeightPlanes
from vkllm.model.graph import decoder
from vkllm.model.ops import Activate, Matvec, Norm, Op, Rotation

LEAST_MATRIX = 8
"""Rows of the smallest matrices."""


@dataclass(frozen=True)
class Unfinished:
    """A norm whose result, as it is stored, lacks the factor of each row. factors_at: where those of the last norm are,
    which it was scaled by."""

    norm: Norm
    factors_at: int


@dataclass(frozen=True)
class Fused:
    """What becomes one dispatch with a product: the norm before it, the activation, the rotation or the norm behind it.
    factors_at: where the factors of the last norm are."""

    before: Unfinished | None = None
    activate: Activate | None = None
    rotation: Rotation | None = None
    behind: Norm | None = None
    factors_at: int = 0

    @property
    def n_ops(self) -> int:
        """How many operations it takes the place of."""
        return 1 + sum(op is not None for op in (self.activate, self.rotation, self.behind))


class NarrowOperations:
    """Makes dispatches. step: the step buffer on the device. forms: of activations.

    factors: 1 / root mean square of each row, of the last two norms.
    """

    def __init__(
        self,
        device: Device,
        buffers: ModelBuffers,
        step: Buffer,
        forms: StoredForms,
    ) -> None:
        self._device = device
        self._buffers = buffers
        self._step = step
        self._forms = forms
        self._squares = device.buffer(MAX_NARROW * -(-buffers.spec.d_model // LEAST_MATRIX))
        self.factors = device.buffer(2 * MAX_NARROW)
        self._readers = readers_of_norms(decoder(buffers.spec))
        self._made: dict[tuple[Op, int, Fused], list[Dispatch]] = {}

    def fused(self, ops: Sequence[Op], width: int, before: Unfinished | None, factors_at: int | None) -> Fused:
        """What becomes one dispatch with the first of these operations, a product that takes_narrow. before: what is
        stored of its input, if it is the result of a norm. factors_at: where the factors of the last norm are, if there
        are any."""
        op, *rest = ops
        assert isinstance(op, Matvec)
        match rest:
            case [Activate() as activate, *_] if self._suits_gates(op, activate, width):
                return Fused(before, activate=activate)
            case [Rotation() as rotation, *_] if self._suits_rotation(op, rotation):
                return Fused(before, rotation=rotation)
            case [Norm() as norm, *others] if before is None and factors_at is not None:
                if self._suits_norm(op, norm, others, width):
                    return Fused(behind=norm, factors_at=factors_at)
        return Fused(before)

    def products(self, op: Matvec, width: int, fused: Fused) -> list[Dispatch]:
        """One dispatch for each group of rows of the same format, made once."""
        key = (op, width, fused)
        if key not in self._made:
            made, y_offset = [], 0
            for planes in self._buffers.matrices[op.weights]:
                made.append(self._product(op, planes, width, y_offset, fused))
                y_offset += planes.n_rows
            self._made[key] = made
        return self._made[key]

    def _suits_gates(self, matvec: Matvec, activate: Activate, width: int) -> bool:
        """Whether matmul_narrow computes gate and up together with their activation."""
        planes, *others = self._buffers.matrices[matvec.weights]
        is_simple = activate.is_gated and activate.up is None and activate.slots == 1 and matvec.add is None
        is_between = activate.input == matvec.output and matvec.factor == 1 and self._stores_fragments(activate, width)
        is_aligned = matvec.width == planes.n_rows == 2 * activate.width and activate.width % BLOCK == 0
        return is_simple and is_between and is_aligned and not others

    def _stores_fragments(self, op: Op, width: int) -> bool:
        return self._forms.of(op.output, width) & 255 == FRAGMENTS

    def _suits_rotation(self, matvec: Matvec, rotation: Rotation) -> bool:
        """Whether it stores rotated queries and keys, and values, in place of its result."""
        rope = rotation.rope
        is_turned = rope is None or (rope.pairing == "interleaved" and rope.dims % 4 == 0)
        is_plain = rotation.weights is None and rotation.temperature is None and not rotation.has_gates
        width = (rotation.n_heads + 2 * rotation.n_kv_heads) * rotation.head_dim
        is_whole = rotation.input == matvec.output and rotation.n_kv_heads > 0 and matvec.width == width
        has_halves = (self._buffers.type_k, self._buffers.type_v) == ("f16", "f16")
        return is_turned and is_plain and is_whole and has_halves and matvec.add is None and rotation.head_dim % 8 == 0

    def _suits_norm(self, matvec: Matvec, norm: Norm, others: Sequence[Op], width: int) -> bool:
        """Whether the norm behind it needs no dispatch: an RMS norm that only products of matmul_narrow read, all of
        them among the others."""
        m, _, _ = self._forms.layout.shape
        is_plain = norm.form == "rms" and norm.weight is not None and norm.bias is None and norm.add is None
        is_simple = norm.factor == 1 and norm.scale is None and not norm.group and not norm.input_width
        is_placed = norm.output_column == 0 and not norm.output_width and norm.width == matvec.width
        planes, *cut = self._buffers.matrices[matvec.weights]
        is_whole = (
            not cut and planes.n_rows == matvec.width and matvec.width % BLOCK == 0 and matvec.width % (4 * m) == 0
        )
        readers = self._readers.get(norm)
        if not (is_plain and is_simple and is_placed and is_whole and norm.input == matvec.output and readers):
            return False
        is_read_narrowly = all(isinstance(op, Matvec) and self._forms.takes_narrow(op, width) for op in readers)
        return is_read_narrowly and self._stores_fragments(norm, width) and all(op in others for op in readers)

    def _product(self, op: Matvec, planes: WeightPlanes, width: int, y_offset: int, fused: Fused) -> Dispatch:
        """A part of a product, into the columns of its output from y_offset on."""
        layout, info, buffers = self._forms.layout, self._device.info, self._buffers
        activate, rotation, before, behind = fused.activate, fused.rotation, fused.before, fused.behind
        last = activate or op
        m, n, k = layout.shape
        x, y = buffers.activations[op.input], buffers.activations[(rotation or last).output].values
        halves = buffers.activations[behind.output if behind else last.output].q16
        assert x.q16 is not None
        gates = int(activate is not None)
        add = buffers.activations[op.add].values if op.add else y
        bias = buffers.biases.get(op.weights)
        n_rows = min(planes.n_rows // (1 + gates), last.width - y_offset)
        n_splits = narrow_splits(info, layout, n_rows, gates, weight_format(planes.format).table_words)
        norm = before.norm if before else behind
        weight = buffers.vectors[behind.weight] if behind and behind.weight else y
        table = buffers.rope_tables[rotation.rope] if rotation and rotation.rope else y
        caches = buffers.caches_of(rotation.layer, y) if rotation else (y, y)
        factors_at = before.factors_at if before else fused.factors_at
        return self._device.dispatch(
            KERNELS["matmul_narrow"],
            (
                *(planes.quants, planes.scales, x.q16, add, y, self._step, bias or y, halves or y),
                *(weight, self._squares, self.factors, table, *caches),
            ),
            constants=(
                *(n_splits * (1 + gates) * info.subgroup_size, planes.n_columns, n_splits, -(-width // n), m, n, k),
                *(layout.lanes, int(layout.is_direct), narrow_steps_ahead(layout, n_splits, -(-width // n))),
                *(int(op.add is not None), int(bias is not None), float_bits(op.factor)),
                *(gates, ACTIVATIONS.index(activate.function if activate else "none")),
                int(activate is not None or behind is not None),
                *(int(before is not None), int(behind is not None), float_bits(norm.eps if norm else 0), factors_at),
                *_heads(rotation, buffers),
            ),
            groups=(-(-n_rows // m), 1),
            push=(n_rows, y_offset, last.width, width),
            weight_format=planes.format,
            is_independent=y_offset > 0,
        )


def keeps_factors(op: Norm, width: int) -> bool:
    """Whether a norm with a dispatch of its own leaves the factors of its rows."""
    is_plain = op.form == "rms" and op.group == 0 and op.add is None
    return is_plain and op.input == "x" and op.output != "final" and 1 < width <= MAX_NARROW


def other_factors(factors_at: int) -> int:
    """Where the next norm's factors come to. factors_at: where the last one's are."""
    return MAX_NARROW - factors_at


def readers_of_norms(ops: Sequence[Op]) -> dict[Norm, tuple[Op, ...]]:
    """The operations that read the result of each norm."""
    readers: dict[Norm, tuple[Op, ...]] = {}
    latest: dict[str, Norm] = {}
    for op in ops:
        read = {getattr(op, field.name) for field in fields(op) if field.name not in ("output", "weights")}
        for norm in latest.values():
            if norm.output in (name for name in read if isinstance(name, str)):
                readers[norm] = (*readers.get(norm, ()), op)
        latest.pop(op.output, None)
        if isinstance(op, Norm):
            latest[op.output] = op
    return readers


def _heads(rotation: Rotation | None, buffers: ModelBuffers) -> tuple[int, ...]:
    """The constants from stores_heads on."""
    if rotation is None:
        return 0, 1, 1, 8, 0, 0
    dims = rotation.rope.dims if rotation.rope else 0
    heads = rotation.n_heads, rotation.n_kv_heads, rotation.head_dim
    return 1, *heads, dims, buffers.tables[rotation.layer]
