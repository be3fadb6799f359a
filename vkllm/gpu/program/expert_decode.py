"""Mixtures of experts in steps of one token: three links, which read the chosen experts only.

The router with the choice of experts; gate and up of all chosen ones with their activation; the sum of their results.
Knows what route_fused and matvec_fused need; `decode.py` says what runs beside them.
"""

from __future__ import annotations

from vkllm.formats.quants import weight_format
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.choices import DecodeTuning
from vkllm.gpu.program.expert_operations import routing_constants
from vkllm.gpu.program.kernels import ACTIVATIONS, KERNELS
from vkllm.gpu.program.links import Link
from vkllm.gpu.program.rounds import PORTION_ROUNDS, portion_rounds
from vkllm.gpu.program.weights import WeightPlanes
from vkllm.model.expert_ops import ExpertMatvec, ExpertSum, Route
from vkllm.model.graph import decoder
from vkllm.model.ops import Activate, Matvec, Norm


class ExpertDecode:
    """Makes the links. chain, failure: see Decode. most_polls: of a wait, 0 if nothing is chained."""

    def __init__(
        self,
        device: Device,
        buffers: ModelBuffers,
        tuning: DecodeTuning,
        chain: Buffer,
        failure: Buffer,
        most_polls: int,
    ) -> None:
        self._device = device
        self._buffers = buffers
        self._tuning = tuning
        self._chain = chain
        self._failure = failure
        self._most_polls = most_polls

    def can_route(self, norm: Norm, router: Matvec, route: Route) -> bool:
        """Whether route_fused can compute the router, with the norm before it."""
        planes = self._buffers.matrices[router.weights]
        is_plain = len(planes) == 1 and planes[0].format == "F32" and not router.column_padding
        return is_plain and _is_simple(norm) and router.add is None and router.factor == 1

    def can_route_alone(self, norm: Norm, router: Matvec, route: Route) -> bool:
        """The same, where norms stand before the products with the chosen experts: these must be fused too, because
        the others read tiles, which only an unfused choice makes."""
        products = [op for op in decoder(self._buffers.spec) if isinstance(op, ExpertMatvec)]
        return self.can_route(norm, router, route) and all(
            self._fits(op, op.n_columns if op.is_input_shared else op.n_slots * op.n_columns)
            for op in products
            if op.layer == route.layer
        )

    def can_gate(self, norm: Norm, op: ExpertMatvec, activation: Activate) -> bool:
        """Whether matvec_fused can compute gate and up of the chosen experts, with norm and activation."""
        is_whole = activation.up is None and activation.slots == op.n_slots and op.is_input_shared
        return is_whole and _is_simple(norm) and norm.factor == 1 and self._fits(op, op.n_columns)

    def can_sum(self, op: ExpertMatvec, total: ExpertSum) -> bool:
        """Whether matvec_fused can add up the results of the chosen experts."""
        is_alike = op.input_stride == op.n_columns and total.n_slots == op.n_slots and len(op.weights) == 1
        return is_alike and not op.is_weighed and self._fits(op, op.n_slots * op.n_columns)

    def _fits(self, op: ExpertMatvec, n_columns: int) -> bool:
        """Whether one dispatch can read the matrices, and its shared memory holds n_columns activations."""
        planes = self._buffers.matrices[op.weights]
        fmt = weight_format(planes[0].format)
        room = self._device.info.max_shared_bytes - 2048 - 4 * fmt.table_words
        is_readable = len(planes) == 1 and fmt.is_quantized and op.routes is not None
        return is_readable and n_columns * 9 // 4 <= room and op.n_slots <= self._tuning.size

    def route(self, norm: Norm, router: Matvec, route: Route, arrivals: int) -> Link:
        """The choice of experts. arrivals: where the chain counts the workgroups that have left their logits."""
        buffers, tuning, experts = self._buffers, self._tuning, route.experts
        source, logits = buffers.activations[norm.input].values, buffers.activations[router.output].values
        weight = buffers.vectors[norm.weight] if norm.weight else source
        bias = buffers.biases.get(router.weights)
        selection_bias = buffers.vectors[route.bias] if route.bias else source
        (planes,) = buffers.matrices[router.weights]
        rows_per_group = max(tuning.attention_size // self._device.info.subgroup_size, 1)
        dispatch = self._device.dispatch(
            KERNELS["route_fused"],
            (
                *(planes.quants, source, weight, bias or source, logits, selection_bias),
                *(buffers.activations[route.output].values, self._chain, self._failure),
            ),
            constants=(
                *(tuning.attention_size, *routing_constants(experts, has_bias=route.bias is not None)),
                *(planes.n_columns, int(norm.form == "rms"), float_bits(norm.eps), float_bits(norm.factor)),
                *(int(bias is not None), self._most_polls),
            ),
            groups=(-(-planes.n_rows // rows_per_group), 1),
            push=(arrivals, 0, 0),
            is_chained=tuning.is_chained,
        )
        return self._link(dispatch)

    def gate_up(self, norm: Norm, op: ExpertMatvec, activation: Activate) -> Link:
        """Gate and up of the chosen experts, or up alone, with the norm before them and the activation behind."""
        (planes,) = self._buffers.matrices[op.weights]
        n_gates = 2 if activation.is_gated else 1
        slot_rows = activation.width // op.n_slots
        return self._matvec(
            op,
            planes,
            norm.input,
            activation.output,
            norm=norm,
            n_rows=activation.width,
            slot_rows=slot_rows,
            n_columns=op.n_columns,
            rows=max(self._tuning.rows // n_gates, 1),
            others=dict(
                gates=int(activation.is_gated),
                activation=ACTIVATIONS.index(activation.function),
                factor=float_bits(1.0),
                is_weighed=int(op.is_weighed),
            ),
        )

    def down(self, op: ExpertMatvec, total: ExpertSum) -> Link:
        """The weighted sum of what the chosen experts and the shared one return."""
        (planes,) = self._buffers.matrices[op.weights]
        return self._matvec(
            op,
            planes,
            op.input,
            total.output,
            n_rows=total.width,
            slot_rows=total.width,
            n_columns=op.n_slots * op.n_columns,
            rows=self._tuning.rows,
            add=total.add,
            shared=total.shared,
            others=dict(sums_slots=1, factor=float_bits(total.factor), is_weighed=int(total.is_weighed)),
        )

    def _matvec(
        self,
        op: ExpertMatvec,
        planes: WeightPlanes,
        source_name: str,
        output: str,
        *,
        n_rows: int,
        slot_rows: int,
        n_columns: int,
        rows: int,
        others: dict[str, int],
        norm: Norm | None = None,
        add: str | None = None,
        shared: str | None = None,
    ) -> Link:
        buffers, tuning, activations = self._buffers, self._tuning, self._buffers.activations
        source, y = activations[source_name].values, activations[output].values
        bias, scales = buffers.biases.get(op.weights), buffers.expert_scales.get(op.weights)
        subgroup_size = self._device.info.subgroup_size
        n_subgroups = max(tuning.size // subgroup_size, 1)
        rows = fitted_rows(self._device.info, tuning, rows, n_rows)
        n_portions = -(-n_rows // (rows * n_subgroups))
        n_rounds = n_portions * portion_rounds(n_columns, tuning.unroll, subgroup_size)
        n_groups = even(n_portions, tuning.groups and max(tuning.groups, -(-n_rounds // PORTION_ROUNDS)))
        values = dict(
            local_size=tuning.size,
            columns=planes.n_columns,
            n_columns=n_columns,
            rows_per_subgroup=rows,
            unroll=tuning.unroll,
            norms=int(norm is not None and norm.form == "rms"),
            eps=float_bits(norm.eps if norm else 0),
            adds=int(add is not None),
            most_polls=self._most_polls,
            doubles=int(tuning.doubles),
            has_bias=int(bias is not None),
            n_slots=op.n_slots,
            n_experts=op.n_experts,
            expert_rows=op.n_rows[0],
            slot_rows=slot_rows,
            has_scales=int(scales is not None),
            has_shared=int(shared is not None),
            **others,
        )
        kernel = KERNELS["matvec_fused"]
        assert set(values) <= set(kernel.constants)
        dispatch = self._device.dispatch(
            kernel,
            (
                *(planes.quants, planes.scales, source),
                buffers.vectors[norm.weight] if norm and norm.weight else source,
                *(activations[add].values if add else source, y, self._chain, self._failure, bias or source, source),
                *(activations[op.routes or ""].values, scales or source),
                activations[shared].values if shared else source,
            ),
            constants=tuple(values.get(name, 0) for name in kernel.constants),
            groups=(n_groups, 1),
            push=(n_rows, 0, 0, 0, 0),
            weight_format=planes.format,
            is_chained=tuning.is_chained,
        )
        return self._link(dispatch)

    def _link(self, dispatch: Dispatch) -> Link:
        return Link((dispatch,), dispatch.groups[0] if self._tuning.is_chained else 0)


def fitted_rows(info: DeviceInfo, tuning: DecodeTuning, rows: int, n_rows: int) -> int:
    """Rows that a subgroup computes together: fewer where the device has subgroups for all rows of the matrix."""
    n_subgroups = max(tuning.size // info.subgroup_size, 1) * max(tuning.groups, 1)
    while info.type != "cpu" and rows > 1 and n_rows <= rows // 2 * n_subgroups:
        rows //= 2
    return rows


def even(n: int, most: int) -> int:
    """Workgroups for n portions of work, at most `most` (0: no limit), each taking as many as the others."""
    return n if most == 0 or n <= most else -(-n // -(-n // most))


def _is_simple(norm: Norm) -> bool:
    """Whether a norm is one that both kernels compute: by the root mean square, of the whole row, or none."""
    is_plain = norm.add is None and norm.bias is None and norm.scale is None and not (norm.input_width or norm.group)
    return is_plain and (norm.form == "none" or (norm.form == "rms" and norm.weight is not None))
