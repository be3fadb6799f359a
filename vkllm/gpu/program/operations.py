"""Operations as dispatches: one method for each kind, each with its kernel, its constants and its workgroups.

Knows the kernels' contracts (`kernels.py`), the model's buffers and the device's tuning. `program.py` decides what is
recorded, and in which order.
"""

from __future__ import annotations

from collections.abc import Sequence

from vkllm.formats.quants import BLOCK, weight_format
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.attention_operations import AttentionOperations
from vkllm.gpu.program.buffers import Activation, ModelBuffers
from vkllm.gpu.program.choices import Tuning
from vkllm.gpu.program.exchange import RankExchange
from vkllm.gpu.program.expert_operations import ExpertOperations
from vkllm.gpu.program.kernels import ACTIVATIONS, KERNELS, NORM_FORMS, RESULT_ROWS
from vkllm.gpu.program.matmul_tiles import (
    FLOAT_SIZE,
    MATMUL_SIZE,
    NARROW_TOKENS,
    column_parts,
    float_tile,
    matmul_subgroups,
    matmul_tile,
    parts_bytes,
    suits_matmul,
    suits_matmul_float,
)
from vkllm.gpu.program.narrow_operations import Fused, NarrowOperations, Unfinished, keeps_factors, other_factors
from vkllm.gpu.program.state_operations import StateOperations
from vkllm.gpu.program.stored_forms import HALVES, NOTHING, StoredForms
from vkllm.gpu.program.weights import WeightPlanes
from vkllm.model.expert_ops import ExpertMatvec, ExpertSum, Route
from vkllm.model.graph import widths
from vkllm.model.ops import (
    Activate,
    AllReduce,
    Attention,
    Embed,
    HeadNormalization,
    Matvec,
    MoveRows,
    Norm,
    Op,
    Rotation,
    Softcap,
)
from vkllm.model.state_ops import Convolution, DeltaNetStep, GatedNorm, GatedSquares, LatentRotation, Mamba2Step


class Operations:
    """Makes and keeps dispatches. step: the step buffer on the device, which nearly every kernel reads. exchange: with
    other ranks, if there are any."""

    def __init__(
        self,
        device: Device,
        buffers: ModelBuffers,
        step: Buffer,
        tuning: Tuning,
        exchange: RankExchange | None = None,
    ) -> None:
        self._device = device
        self._buffers = buffers
        self._exchange = exchange
        self.step = step
        self._tuning = tuning
        self._local_size = tuning.local_size
        self._forms = StoredForms(buffers, tuning)
        self.attention = AttentionOperations(device, buffers, step, tuning, self._forms)
        self._states = StateOperations(device, buffers, step, tuning, self._forms)
        self._experts = ExpertOperations(device, buffers, step, tuning, self._forms)
        self._narrow = NarrowOperations(device, buffers, step, self._forms)
        self._made: dict[tuple[Op, int], list[Dispatch]] = {}
        self._parts = buffers.room_for_parts(self._most_parts_bytes()) if tuning.has_matmul else None

    def of_all(self, ops: Sequence[Op], width: int) -> list[Dispatch]:
        """Dispatches of neighbouring operations for steps of `width` rows, some of which become one."""
        dispatches: list[Dispatch] = []
        unfinished: dict[str, Unfinished] = {}  # what is stored of the results of norms
        factors_at: int | None = None  # where the factors of the last norm are
        rest = list(ops)
        while rest:
            op = rest[0]
            if not (isinstance(op, Matvec) and self._forms.takes_narrow(op, width)):
                dispatches += self.of(op, width)
                unfinished.pop(op.output, None)
                if isinstance(op, Norm) and keeps_factors(op, width):
                    factors_at = 0
                rest = rest[1:]
                continue
            fused = self._narrow.fused(rest, width, unfinished.get(op.input), factors_at)
            dispatches += self._narrow.products(op, width, fused)
            if fused.behind:
                unfinished[fused.behind.output] = Unfinished(fused.behind, fused.factors_at)
                factors_at = other_factors(fused.factors_at)
            rest = rest[fused.n_ops :]
        return dispatches

    def of(self, op: Op, width: int) -> list[Dispatch]:
        """Dispatches of an operation for steps of `width` rows, made once."""
        key = (op, width)
        if key not in self._made:
            self._made[key] = self._make(op, width)
        return self._made[key]

    def _make(self, op: Op, width: int) -> list[Dispatch]:
        match op:
            case Embed():
                return self._embed(op, width)
            case Norm():
                return [self.norm(op, width)]
            case Matvec():
                return self._matvec(op, width)
            case HeadNormalization():
                return [self.attention.head_norm(op, width)]
            case Rotation():
                return [self.attention.rope(op, width)]
            case LatentRotation():
                return [self.attention.latent_rope(op, width)]
            case Attention():
                return [self.attention.attention(op, width)]
            case Activate():
                return [self._activate(op, width)]
            case Softcap():
                return [self._softcap(op, width)]
            case Convolution() | DeltaNetStep() | Mamba2Step() | GatedNorm() | GatedSquares():
                return [self._states.of(op, width)]
            case Route():
                return self._experts.route(op, width)
            case ExpertMatvec():
                return self._experts.expert_matvec(op, width)
            case ExpertSum():
                return [self._experts.expert_sum(op, width)]
            case MoveRows():
                return [self._move_rows(op, width)]
            case AllReduce():
                return [self.all_reduce(op, width)]
        raise AssertionError(op.kind)

    def _embed(self, op: Embed, width: int) -> list[Dispatch]:
        """One dispatch for each part of the table; each writes the rows of its own tokens."""
        dispatches: list[Dispatch] = []
        first_row = 0
        for planes in self._buffers.matrices[op.weights]:
            dispatches.append(
                self._device.dispatch(
                    KERNELS["embed"],
                    (planes.quants, planes.scales, self._buffers.activations[op.output].values, self.step),
                    constants=(self._local_size, op.width, float_bits(op.scale), planes.n_columns // BLOCK),
                    groups=(-(-op.width // self._local_size), width),
                    push=(first_row, planes.n_rows),
                    weight_format=planes.format,
                    is_independent=first_row > 0,
                )
            )
            first_row += planes.n_rows
        return dispatches

    def norm(
        self, op: Norm, width: int, chain: Buffer | None = None, failure: Buffer | None = None, most_polls: int = 0
    ) -> Dispatch:
        """A norm of width rows; in a chain if most_polls is not 0."""
        x, y = self._buffers.activations[op.input], self._buffers.activations[op.output]
        weight, bias = (self._buffers.vectors[name] if name else None for name in (op.weight, op.bias))
        add = self._buffers.activations[op.add].values if op.add else None
        scale = self._buffers.vectors[op.scale] if op.scale else None
        unread = x.values  # bound in place of what there is not
        n_groups = op.width // op.group if op.group else 1
        form = self._forms.of(op.output, width) if add is None else NOTHING
        assert n_groups == 1 or op.group % BLOCK == 0 or form == NOTHING
        return self._device.dispatch(
            KERNELS["norm"],
            (
                *(x.values, weight or unread, bias or unread, add or unread),
                *(y.values, y.q16 or unread, y.scales or unread, self.step, scale or unread),
                *(chain or unread, failure or unread, self._narrow.factors),
            ),
            constants=(
                *(4 * self._local_size, op.width, float_bits(op.eps), NORM_FORMS.index(op.form)),
                *(int(weight is not None), int(bias is not None), int(add is not None), form),
                *(op.input_width, op.group, float_bits(op.factor), int(scale is not None), most_polls),
                *(op.output_width, op.output_column, int(keeps_factors(op, width)), 0),
            ),
            groups=(n_groups, width),
            push=(RESULT_ROWS if op.output == "final" else 0, 0, 0),
            is_chained=most_polls > 0,
        )

    def _matvec(self, op: Matvec, width: int) -> list[Dispatch]:
        """One dispatch for each group of rows of the same format; the groups write different columns of y."""
        if self._forms.takes_narrow(op, width):
            return self._narrow.products(op, width, Fused())
        x, y = self._buffers.activations[op.input], self._buffers.activations[op.output].values
        add = self._buffers.activations[op.add].values if op.add else None
        bias = self._buffers.biases.get(op.weights)
        dispatches: list[Dispatch] = []
        y_offset = 0
        for planes in self._buffers.matrices[op.weights]:
            if self._forms.takes_matmul(op, planes, width):
                dispatches += self._matmul_in_parts(op, planes, x, y, width, y_offset, add, bias)
            elif width > 1 and op.output != "logits" and suits_matmul_float(planes):
                dispatches.append(self._matmul_float(op, planes, x.values, y, width, y_offset, add, bias))
            else:
                dispatches.append(self.matvec(planes, x, y, width, op.width, y_offset, add, bias, op.factor))
            y_offset += planes.n_rows
        return dispatches

    def matvec(
        self,
        planes: WeightPlanes,
        x: Activation,
        y: Buffer,
        width: int,
        y_width: int,
        y_offset: int = 0,
        add: Buffer | None = None,
        bias: Buffer | None = None,
        factor: float = 1.0,
    ) -> Dispatch:
        """add + factor * (W x + bias), into the columns of y (width, y_width) from y_offset on.

        bias (y_width,): a number for each column of y.
        """
        rows, tokens = self._tuning.tile_rows, min(width, self._tuning.tile_tokens)
        rows_per_group = rows * max(self._local_size // self._device.info.subgroup_size, 1)
        n_rows = min(planes.n_rows, y_width - y_offset)  # an embedding may have more rows than there are tokens
        is_quantized = weight_format(planes.format).is_quantized
        x_data, x_scales = (x.q16, x.scales) if is_quantized else (x.values, x.values)
        assert x_data is not None and x_scales is not None
        added, biases = add or x.values, bias or x.values  # bound, but not read, if nothing is added
        return self._device.dispatch(
            KERNELS["matvec"],
            (planes.quants, planes.scales, x_data, x_scales, added, y, self.step, biases),
            constants=(
                *(self._local_size, planes.n_columns, rows, tokens, int(add is not None)),
                *(int(bias is not None), float_bits(factor)),
            ),
            groups=(-(-n_rows // rows_per_group), -(-width // tokens)),
            push=(n_rows, y_offset, y_width),
            weight_format=planes.format,
            is_independent=y_offset > 0,
        )

    def _most_parts_bytes(self) -> int:
        """What the parts of the largest product that has some (column_parts) take."""
        all_planes = [planes for matrices in self._buffers.matrices.values() for planes in matrices]
        n_parts = [(planes.n_rows, self._n_parts(planes)) for planes in all_planes]
        return max((parts_bytes(n_rows, n) for n_rows, n in n_parts if n > 1), default=0)

    def _n_parts(self, planes: WeightPlanes) -> int:
        if not suits_matmul(planes):
            return 1
        return column_parts(planes.n_rows, planes.n_columns, self._device.info.n_cores, self._tuning.matmul_size)

    def _matmul_in_parts(
        self,
        op: Matvec,
        planes: WeightPlanes,
        x: Activation,
        y: Buffer,
        width: int,
        y_offset: int,
        add: Buffer | None,
        bias: Buffer | None,
    ) -> list[Dispatch]:
        """A product by cooperative matrices, in parts of its columns where tiles alone would leave cores idle."""
        n_parts, in_halves = self._n_parts(planes), self._forms.of(op.input, width) == HALVES
        if self._parts is None or n_parts == 1:
            return [self.matmul(planes, x, y, width, op.width, y_offset, add, bias, op.factor, in_halves=in_halves)]
        product = self.matmul(planes, x, self._parts, width, planes.n_rows, n_parts=n_parts, in_halves=in_halves)
        total = self._device.dispatch(
            KERNELS["sum_parts"],
            (self._parts, add or self._parts, y, self.step, bias or self._parts),
            constants=(
                *(4 * self._local_size, n_parts, int(add is not None), int(bias is not None), float_bits(op.factor)),
            ),
            groups=(-(-planes.n_rows // (4 * self._local_size)), width),
            push=(planes.n_rows, y_offset, op.width, product.groups[1] // n_parts * product.values["tile_tokens"]),
        )
        return [product, total]

    def matmul(
        self,
        planes: WeightPlanes,
        x: Activation,
        y: Buffer,
        width: int,
        y_width: int,
        y_offset: int = 0,
        add: Buffer | None = None,
        bias: Buffer | None = None,
        factor: float = 1.0,
        n_parts: int = 1,
        in_halves: bool = False,
    ) -> Dispatch:
        """The same by cooperative matrices.

        n_parts: of the columns, whose results follow each other in y. in_halves: whether x is stored as float16.
        """
        info = self._device.info
        assert info.matrix_shape is not None
        room = info.max_shared_bytes - 4 * weight_format(planes.format).table_words
        tile_rows, tile_tokens = matmul_tile(self._tuning.narrow_rows, width, planes.n_columns, room)
        size = self._tuning.matmul_size if tile_tokens > NARROW_TOKENS else MATMUL_SIZE
        source = x.q16 if in_halves else x.values
        assert source is not None
        return self._device.dispatch(
            KERNELS["matmul"],
            (planes.quants, planes.scales, source, add or source, y, self.step, bias or source),
            constants=(
                *(size, planes.n_columns, tile_tokens),
                *matmul_subgroups(tile_rows, tile_tokens, size // info.subgroup_size, info.matrix_shape),
                *(int(add is not None), *info.matrix_shape, tile_rows),
                self._tuning.steps_ahead_wide if tile_tokens > NARROW_TOKENS else self._tuning.steps_ahead,
                *(int(bias is not None), float_bits(factor), n_parts, int(in_halves)),
            ),
            groups=(-(-planes.n_rows // tile_rows), n_parts * -(-width // tile_tokens)),
            push=(planes.n_rows, y_offset, y_width),
            weight_format=planes.format,
            is_independent=y_offset > 0,
        )

    def _matmul_float(
        self,
        op: Matvec,
        planes: WeightPlanes,
        x: Buffer,
        y: Buffer,
        width: int,
        y_offset: int,
        add: Buffer | None,
        bias: Buffer | None,
    ) -> Dispatch:
        """A product in float32, for routers above all: by tiles, which read weights and activations less often."""
        lane_rows, lane_tokens = float_tile(width)
        return self._device.dispatch(
            KERNELS["matmul_float"],
            (planes.quants, x, add or x, y, self.step, bias or x),
            constants=(
                *(FLOAT_SIZE, planes.n_columns, lane_rows, lane_tokens),
                *(int(add is not None), int(bias is not None), float_bits(op.factor)),
            ),
            groups=(-(-planes.n_rows // (4 * lane_rows)), -(-width // (8 * lane_tokens))),
            push=(planes.n_rows, y_offset, op.width),
            is_independent=y_offset > 0,
        )

    def _activate(self, op: Activate, width: int) -> Dispatch:
        x, y = self._buffers.activations[op.input], self._buffers.activations[op.output]
        assert y.q16 is not None and y.scales is not None
        up = self._buffers.activations[op.up].values if op.up else x.values
        up_columns = widths(self._buffers.spec)[op.up] if op.up else 0
        return self._device.dispatch(
            KERNELS["activate"],
            (x.values, y.values, y.q16, y.scales, self.step, up),
            constants=(
                *(self._local_size, op.width, ACTIVATIONS.index(op.function), int(op.is_gated), op.slots),
                *(up_columns, op.up_column, self._forms.of(op.output, width)),
            ),
            groups=(-(-op.width // 4 // self._local_size), width),
        )

    def _softcap(self, op: Softcap, width: int) -> Dispatch:
        return self._device.dispatch(
            KERNELS["softcap"],
            (self._buffers.activations[op.output].values,),
            constants=(self._local_size, op.width, float_bits(op.scale), float_bits(op.cap)),
            groups=(min(1024, -(-op.width // self._local_size)), width),
        )

    def all_reduce(self, op: AllReduce, width: int, chain: tuple[Buffer, Buffer, int] | None = None) -> Dispatch:
        """The sum of all ranks' parts. chain: as `RankExchange.all_reduce` takes it."""
        assert self._exchange is not None
        part, y = (self._buffers.activations[name].values for name in (op.input, op.output))
        add = self._buffers.activations[op.add].values if op.add else None
        return self._exchange.all_reduce(part, y, self.step, op.width, width, add, chain, packs=op.is_packed)

    def _move_rows(self, op: MoveRows, width: int) -> Dispatch:
        host = self._buffers.sent if op.is_sent else self._buffers.received
        assert host is not None
        return self._device.dispatch(
            KERNELS["move_rows"],
            (self._buffers.activations[op.output].values, host, self.step),
            constants=(self._local_size, op.width, int(op.is_sent)),
            groups=(-(-op.width // self._local_size), width),
        )
