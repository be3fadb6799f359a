"""Mixtures of experts as dispatches: the choice of experts, products with their matrices, the sum of their results.

In steps of several rows, slots (a row and one of its experts) are sorted by expert and cut into tiles, which read each
weight once for all of their slots. Knows the kernels' contracts (`kernels.py`), the model's buffers and the device's
tuning.
"""

from __future__ import annotations

from vkllm.formats.quants import weight_format
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.buffers import Activation, ModelBuffers
from vkllm.gpu.program.choices import Tuning
from vkllm.gpu.program.kernels import GATINGS, KERNELS, MAX_ROWS, NORM_FORMS
from vkllm.gpu.program.matmul_tiles import (
    MATMUL_SIZE,
    NARROW_TOKENS,
    WIDE_TILE,
    matmul_subgroups,
    matmul_tile,
)
from vkllm.gpu.program.stored_forms import HALVES, StoredForms
from vkllm.gpu.program.weights import WeightPlanes
from vkllm.model.expert_ops import ExpertMatvec, ExpertSum, Route
from vkllm.model.spec import Experts

TILE_SPARE = 2
"""Slots of a tile for each that an expert has on average."""


class ExpertOperations:
    """Makes dispatches for steps of any number of rows. step: the step buffer on the device."""

    def __init__(self, device: Device, buffers: ModelBuffers, step: Buffer, tuning: Tuning, forms: StoredForms) -> None:
        self._device = device
        self._buffers = buffers
        self._step = step
        self._tuning = tuning
        self._forms = forms
        self._local_size = tuning.local_size
        kinds = {
            (layer.experts.n_experts, layer.experts.n_used)
            for layer in buffers.spec.all_layers
            if layer.experts is not None
        }
        n_tiles = max((most_tiles(MAX_ROWS * used, n, 1) for n, used in kinds), default=1)
        self._tiles = device.buffer(4 * n_tiles)
        self._entries = device.buffer(max((MAX_ROWS * used for _, used in kinds), default=1))

    def route(self, op: Route, width: int) -> list[Dispatch]:
        """The choice of experts, and the tiles of the slots that follow from it."""
        routes, experts = self._buffers.activations[op.output].values, op.experts
        logits = self._buffers.activations[op.input].values
        bias = self._buffers.vectors[op.bias] if op.bias else None
        choice = self._device.dispatch(
            KERNELS["route"],
            (logits, bias or logits, routes, self._step),
            constants=(self._local_size, *routing_constants(experts, has_bias=bias is not None)),
            groups=(1, width),
        )
        tile_size = self._tile_size(width, experts.n_used, experts.n_experts)
        tiles = self._device.dispatch(
            KERNELS["expert_tiles"],
            (routes, self._tiles, self._entries, self._step),
            constants=(
                *(4 * self._local_size, experts.n_experts, experts.n_used, tile_size),
                most_tiles(width * experts.n_used, experts.n_experts, tile_size),
            ),
        )
        return [choice, tiles]

    def expert_matvec(self, op: ExpertMatvec, width: int) -> list[Dispatch]:
        """A dispatch for each stack of tensors; these write different columns of y."""
        x = self._buffers.activations[op.input]
        dispatches: list[Dispatch] = []
        first_tensor = 0
        for planes in self._buffers.matrices[op.weights]:
            n_rows = op.padded_rows[first_tensor]
            if self._forms.takes_matmul(op, planes, width):
                dispatches.append(self._matmul(op, planes, first_tensor, width))
            else:
                if op.routes is None and weight_format(planes.format).is_quantized and not dispatches:
                    dispatches.append(self._quantize(x, input_columns(op), width))
                dispatches.append(self._matvec(op, planes, first_tensor, width))
            first_tensor += planes.n_rows // (op.n_experts * n_rows)
        return dispatches

    def expert_sum(self, op: ExpertSum, width: int) -> Dispatch:
        """The sum of a row's results."""
        x, routes, y = (self._buffers.activations[name].values for name in (op.input, op.routes, op.output))
        shared = self._buffers.activations[op.shared].values if op.shared else None
        add = self._buffers.activations[op.add].values if op.add else None
        return self._device.dispatch(
            KERNELS["expert_sum"],
            (x, routes, shared or x, add or x, y, self._step),
            constants=(
                *(self._local_size, op.width, op.n_slots, int(op.is_weighed)),
                *(int(shared is not None), int(add is not None), float_bits(op.factor)),
            ),
            groups=(-(-op.width // self._local_size), width),
        )

    def _tile_size(self, width: int, n_slots: int, n_experts: int) -> int:
        """Slots of a tile in steps of `width` rows.

        They hold all slots of most experts: to bring weights into shared memory again takes longer than to multiply
        more slots than there are.
        """
        if not self._tuning.has_matmul:
            return self._tuning.tile_tokens
        return next((n for n in (16, 32) if n_experts * n >= TILE_SPARE * width * n_slots), NARROW_TOKENS)

    def _quantize(self, x: Activation, columns: int, width: int) -> Dispatch:
        """q16 blocks of an activation whose operation writes none."""
        assert x.q16 is not None and x.scales is not None
        return self._device.dispatch(
            KERNELS["norm"],
            (*(5 * [x.values]), x.q16, x.scales, self._step, *(4 * [x.values])),
            constants=(
                *(4 * self._local_size, columns, 0, NORM_FORMS.index("none"), 0, 0, 0, 1),
                *(columns, 0, float_bits(1.0), 0, 0, 0, 0, 0, 0),
            ),
            groups=(1, width),
            push=(0, 0, 0),
        )

    def _matvec(self, op: ExpertMatvec, planes: WeightPlanes, first_tensor: int, width: int) -> Dispatch:
        rows, spans = self._tuning.tile_rows, min(self._tuning.tile_tokens, width * op.n_slots)
        tile_size, n_tiles = self._tiles_of(op, spans, width)
        rows_per_group = rows * max(self._local_size // self._device.info.subgroup_size, 1)
        is_quantized = weight_format(planes.format).is_quantized
        x = self._buffers.activations[op.input]
        x_data, x_scales = (x.q16, x.scales) if is_quantized else (x.values, x.values)
        assert x_data is not None and x_scales is not None
        n_rows = planes.n_rows // op.n_experts
        return self._device.dispatch(
            KERNELS["expert_matvec"],
            (planes.quants, planes.scales, x_data, x_scales, *self._others(op, x)),
            constants=(
                *(self._local_size, planes.n_columns, rows, spans),
                *self._tile_constants(op, first_tensor, tile_size),
            ),
            groups=(-(-n_rows // rows_per_group), n_tiles),
            push=(n_rows, first_tensor * op.padded_rows[0], op.width),
            weight_format=planes.format,
            is_independent=first_tensor > 0,
        )

    def _matmul(self, op: ExpertMatvec, planes: WeightPlanes, first_tensor: int, width: int) -> Dispatch:
        """The same by cooperative matrices.

        Tiles of 128 rows at any width: with 64, a prompt of Qwen3-30B-A3B takes 17 % longer on an H200.
        """
        info, x, tuning = self._device.info, self._buffers.activations[op.input], self._tuning
        assert info.matrix_shape is not None
        room = info.max_shared_bytes - 4 * weight_format(planes.format).table_words
        wanted = width if op.routes is None else self._tile_size(width, op.n_slots, op.n_experts)
        tile_rows, spans = matmul_tile(WIDE_TILE, wanted, planes.n_columns, room)
        tile_size, n_tiles = self._tiles_of(op, spans, width)
        n_rows = planes.n_rows // op.n_experts
        in_halves = self._forms.of(op.input, width) == HALVES
        source = x.q16 if in_halves else x.values
        assert source is not None
        return self._device.dispatch(
            KERNELS["expert_matmul"],
            (planes.quants, planes.scales, source, *self._others(op, x)),
            constants=(
                *(MATMUL_SIZE, planes.n_columns, spans),
                *matmul_subgroups(tile_rows, spans, MATMUL_SIZE // info.subgroup_size, info.matrix_shape),
                *(*info.matrix_shape, tile_rows),
                tuning.steps_ahead_wide if spans > NARROW_TOKENS else tuning.steps_ahead,
                *(*self._tile_constants(op, first_tensor, tile_size), int(in_halves)),
            ),
            groups=(-(-n_rows // tile_rows), n_tiles),
            push=(n_rows, first_tensor * op.padded_rows[0], op.width),
            weight_format=planes.format,
            is_independent=first_tensor > 0,
        )

    def _tiles_of(self, op: ExpertMatvec, spans: int, width: int) -> tuple[int, int]:
        """Slots of a listed tile, and workgroups of `spans` slots for all tiles."""
        if op.routes is None:
            return spans, op.n_experts * -(-width // spans)
        tile_size = self._tile_size(width, op.n_slots, op.n_experts)
        return tile_size, most_tiles(width * op.n_slots, op.n_experts, tile_size) * -(-tile_size // spans)

    def _others(self, op: ExpertMatvec, x: Activation) -> tuple[Buffer, ...]:
        """What both kernels bind behind weights and input."""
        y, unread = self._buffers.activations[op.output].values, x.values
        routes = self._buffers.activations[op.routes].values if op.routes else unread
        bias, scales = self._buffers.biases.get(op.weights), self._buffers.expert_scales.get(op.weights)
        return self._tiles, self._entries, routes, y, self._step, bias or unread, scales or unread

    def _tile_constants(self, op: ExpertMatvec, first_tensor: int, tile_size: int) -> tuple[int, ...]:
        return (
            *(op.n_experts, op.padded_rows[0], first_tensor, op.n_slots, input_columns(op)),
            *(0 if op.is_input_shared else op.input_stride, int(op.routes is not None), tile_size),
            *(int(op.weights in self._buffers.biases), int(op.weights in self._buffers.expert_scales)),
            int(op.is_weighed),
        )


def input_columns(op: ExpertMatvec) -> int:
    """Columns of a row of what it reads."""
    return op.n_columns if op.is_input_shared else op.n_slots * op.input_stride


def routing_constants(experts: Experts, *, has_bias: bool) -> tuple[int, ...]:
    """How experts are chosen, as shaders/lib/routing.glsl takes it."""
    return (
        *(experts.n_experts, experts.n_used, GATINGS.index(experts.gating), int(has_bias)),
        *(experts.n_groups, experts.n_groups_used, int(experts.chooses_by_logits), int(experts.is_normalized)),
        *(float_bits(experts.scale), int(experts.has_shared_gate)),
    )


def most_tiles(n_slots: int, n_experts: int, tile_size: int) -> int:
    """Most tiles that slots can make, however they are spread over the experts: one that is not full for each."""
    n_begun = min(n_slots, n_experts)
    return n_begun + (n_slots - n_begun) // tile_size
