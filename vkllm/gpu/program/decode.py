"""A step of one token in few dispatches: operations fused, and on some devices chained instead of ordered by barriers.

Knows which neighbours in the graph can be one dispatch and what a chain needs (shaders/lib/chain.glsl). Everything that
cannot be fused is `gpu/program/operations.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vkllm.errors import DeviceTimeout
from vkllm.formats.quants import weight_format
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.attention_decode import AttentionDecode
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.choices import DecodeTuning
from vkllm.gpu.program.expert_decode import ExpertDecode, even, fitted_rows
from vkllm.gpu.program.fusions import FUSIONS
from vkllm.gpu.program.kernels import (
    ACTIVATIONS,
    KERNELS,
    LINK_WORDS,
    NO_EXPERTS,
)
from vkllm.gpu.program.links import Link, chained, side_by_side
from vkllm.gpu.program.operations import Operations
from vkllm.gpu.program.rounds import PORTION_ROUNDS, most_polls, portion_rounds
from vkllm.gpu.program.state_decode import StateDecode
from vkllm.model.expert_ops import Route
from vkllm.model.graph import decoder, head
from vkllm.model.ops import Activate, AllReduce, Attention, HeadNormalization, Matvec, Norm, Op, Rotation
from vkllm.model.spec import ModelSpec


class Decode:
    """Makes the dispatches of steps of one token. step: the step buffer on the device.

    chain: where links count their workgroups, to be cleared before each step. failure: a word for the host, the number
    of the first link whose wait was given up, or 0.
    """

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        buffers: ModelBuffers,
        step: Buffer,
        tuning: DecodeTuning,
        operations: Operations,
    ) -> None:
        self._device = device
        self._spec = spec
        self._buffers = buffers
        self._tuning = tuning
        self._operations = operations
        self._most_polls = most_polls(device.info) if tuning.is_chained else 0
        self._made: dict[tuple[Op, ...], list[Link]] = {}
        self._most_links = sum(map(self._links_of, (*decoder(spec), *head(spec))))
        self.chain = device.buffer(-(-(LINK_WORDS + self._arrivals(spec.n_layers)) // 4) * 4)
        self.failure = device.buffer(1, is_host=True)
        self._attention = AttentionDecode(
            device, spec, buffers, step, tuning, self.chain, self.failure, self._most_polls
        )
        self.experts = ExpertDecode(device, buffers, tuning, self.chain, self.failure, self._most_polls)
        self.states = StateDecode(device, buffers, step, self.chain, self.failure, self._most_polls)
        self._link_names: dict[int, str] = {}

    def _links_of(self, op: Op) -> int:
        """Most links of an operation: long matvecs are cut into parts."""
        return -(-op.n_columns // self._most_columns(op)) if isinstance(op, Matvec) else 1

    def _arrivals(self, layer: int) -> int:
        """Where `ended` in the chain counts the parts of attention that have ended in a layer, after the links; and,
        behind those of all heads, the workgroups of its router."""
        return LINK_WORDS * (self._most_links + 1) + (self._spec.n_heads + 1) * layer

    def dispatches(self, ops: Sequence[Op]) -> list[Dispatch]:
        """Dispatches of neighbouring operations, in order."""
        fusions = () if self._device.is_plain else FUSIONS  # the fused kernels need subgroups
        links: list[Link] = []
        rest = tuple(ops)
        while rest:
            fusion = next((fusion for fusion in fusions if fusion.suits(self, rest)), None)
            n = len(fusion.kinds) if fusion else 1
            fused, rest = rest[:n], rest[n:]
            if fused not in self._made:
                self._made[fused] = fusion.links(self, *fused) if fusion else self._single(fused[0])
            links += self._made[fused]
        self._link_names |= {number: link.dispatches[0].kernel.name for number, link in enumerate(links, start=1)}
        return chained(links)

    def check(self) -> None:
        """Raises DeviceTimeout if a wait in a finished step was given up; steps in flight may fail too."""
        assert self.failure.words is not None
        if link := int(self.failure.words[0]):
            raise DeviceTimeout(
                f"{self._link_names[link]} (number {link} of the step) waited in vain for the dispatch before it; "
                "set VKLLM_CHAINS=off, so that the driver orders them"
            )

    def _single(self, op: Op) -> list[Link]:
        """An operation as it runs in steps of several rows, outside the chain."""
        return [Link(tuple(self._operations.of(op, 1)))]

    def can_fuse(self, matvec: Matvec, norm: Norm | None = None, activation: Activate | None = None) -> bool:
        """Whether matvec_fused can compute a product, with the norm before it and the activation behind it."""
        matrices = self._buffers.matrices[matvec.weights]
        is_quantized = all(weight_format(planes.format).is_quantized for planes in matrices)
        # a norm needs all columns at once, an activation gate and up in one matrix
        fits = norm is None or matvec.n_columns <= self._most_columns(matvec)
        is_simple = activation is None or (len(matrices) == 1 and activation.up is None)
        return is_quantized and fits and _can_fuse(norm) and is_simple

    def _most_columns(self, matvec: Matvec) -> int:
        """How many columns' activations fit into a workgroup's shared memory, as q16 blocks beside a few sums and the
        largest table of a format."""
        formats = {planes.format for planes in self._buffers.matrices[matvec.weights]}
        table_bytes = max(4 * weight_format(name).table_words for name in formats)
        return (self._device.info.max_shared_bytes - 1024 - table_bytes) * 4 // 9 // 256 * 256

    def matvec_in_parts(self, op: Matvec) -> list[Link]:
        """A matvec without a norm, in parts of its columns where not all fit into shared memory."""
        columns, most = op.n_columns, self._most_columns(op)
        n_parts = -(-columns // most)
        part = -(-columns // n_parts // 256) * 256
        links = []
        for first in range(0, columns, part):
            summed = op if first == 0 else replace(op, add=op.output, biases=(None,) * len(op.weights))
            links.append(self.matvec(summed, first_column=first, n_columns=min(part, columns - first)))
        return links

    def matvec(
        self,
        op: Matvec,
        norm: Norm | None = None,
        activation: Activate | None = None,
        first_column: int = 0,
        n_columns: int | None = None,
    ) -> Link:
        """op with the norm before it and the activation behind it."""
        tuning, is_gated = self._tuning, activation is not None and activation.is_gated
        last = activation or op
        source = self._buffers.activations[norm.input if norm else op.input].values
        y = self._buffers.activations[last.output].values
        norm_weight = self._buffers.vectors[norm.weight] if norm and norm.weight else source  # bound, but not read
        norm_bias = self._buffers.vectors[norm.bias] if norm and norm.bias else None
        add = self._buffers.activations[op.add].values if op.add else source
        bias = self._buffers.biases.get(op.weights) if op.has_bias else None
        most_rows = max(tuning.rows // (2 if is_gated else 1), 1)
        subgroup_size = self._device.info.subgroup_size
        dispatches: list[Dispatch] = []
        y_offset = n_all = 0
        for planes in self._buffers.matrices[op.weights]:
            n_rows = planes.n_rows // 2 if is_gated else min(planes.n_rows, last.width - y_offset)
            read_columns = n_columns or planes.n_columns
            rows = fitted_rows(self._device.info, tuning, most_rows, n_rows)
            n_portions = -(-n_rows // (rows * max(tuning.size // subgroup_size, 1)))
            n_rounds = n_portions * portion_rounds(read_columns, tuning.unroll, subgroup_size)
            n_groups = even(n_portions, tuning.groups and max(tuning.groups, -(-n_rounds // PORTION_ROUNDS)))
            dispatches.append(
                self._device.dispatch(
                    KERNELS["matvec_fused"],
                    (
                        *(planes.quants, planes.scales, source, norm_weight, add, y, self.chain, self.failure),
                        *(bias or source, norm_bias or source, source, source, source),
                    ),
                    constants=(
                        *(tuning.size, planes.n_columns, first_column, read_columns),
                        *(rows, tuning.unroll, _norms(norm), int(is_gated), int(op.add is not None)),
                        *(float_bits(norm.eps if norm else 0), self._most_polls, tuning.steps_touched),
                        *(int(tuning.doubles), int(bias is not None), float_bits(op.factor)),
                        *(ACTIVATIONS.index(activation.function if activation else "none"), int(norm_bias is not None)),
                        *NO_EXPERTS,
                    ),
                    groups=(n_groups, 1),
                    push=(n_rows, y_offset, 0, 0, 0),
                    weight_format=planes.format,
                    is_independent=y_offset > 0,
                    is_chained=tuning.is_chained,
                )
            )
            n_all += dispatches[-1].groups[0]
            y_offset += n_rows
        return Link(tuple(dispatches), n_all if tuning.is_chained else 0)

    def route(self, norm: Norm, router: Matvec, route: Route) -> Link:
        """The choice of experts, with the router and the norm before it."""
        return self.experts.route(norm, router, route, self._arrivals(route.layer) + self._spec.n_heads)

    def can_fuse_mixture(self, norm: Norm, router: Matvec, route: Route, *ops: Any) -> bool:
        """Whether a whole mixture of experts can be three links."""
        *shared, gate_up, activation, down, total = ops
        is_possible = (
            self.experts.can_route(norm, router, route)
            and self.experts.can_gate(norm, gate_up, activation)
            and self.experts.can_sum(down, total)
        )
        if not shared or not is_possible:
            return is_possible
        first, between, last = shared
        return self.can_fuse(first, replace(norm, is_shared=False), between) and self.can_fuse(last)

    def mixture(self, norm: Norm, router: Matvec, route: Route, *ops: Any) -> list[Link]:
        """A mixture of experts; the shared expert, where there is one, runs beside the choice and gate and up."""
        *shared, gate_up, activation, down, total = ops
        links = [
            self.route(norm, router, route),
            replace(self.experts.gate_up(norm, gate_up, activation), reads_earlier=True),
            self.experts.down(down, total),
        ]
        if shared:
            first, between, last = shared
            *earlier, summed = self.matvec_in_parts(last)
            links[0] = side_by_side(links[0], self.matvec(first, norm, between))
            links[1:2] = [*earlier, side_by_side(links[1], summed)]
        return links

    def can_chain_norms(self) -> bool:
        """Whether the device has the module for norms in a chain."""
        return self._tuning.is_chained and self._device.has_memory_model

    def norm(self, op: Norm) -> Link:
        """A norm that no product can compute, in the chain."""
        dispatch = self._operations.norm(op, 1, self.chain, self.failure, self._most_polls)
        return Link((dispatch,), dispatch.groups[0])

    def can_chain_sums(self) -> bool:
        """Whether sums over all ranks are links of the chain."""
        return self._tuning.is_chained

    def all_reduce(self, op: AllReduce) -> Link:
        """The sum of all ranks' parts, in the chain."""
        dispatch = self._operations.all_reduce(op, 1, (self.chain, self.failure, self._most_polls))
        return Link((dispatch,), dispatch.groups[0])

    def attention(self, op: Attention, rope: Rotation | None = None, norm: HeadNormalization | None = None) -> Link:
        """Attention with the rotations and the norm before it, where they are not done yet."""
        return self._attention.link(op, self._arrivals(op.layer), rope, norm)


def _can_fuse(norm: Norm | None) -> bool:
    """Whether matvec_fused can compute a norm, whose result nobody else reads."""
    if norm is None or (norm.form == "none" and norm.group == 0):
        return True
    is_plain = norm.add is None and norm.group == 0 and norm.factor == 1 and norm.scale is None
    return norm.weight is not None and is_plain and not norm.is_shared


def _norms(norm: Norm | None) -> int:
    """The form of a norm as `norms` of matvec_fused."""
    return 0 if norm is None else {"none": 0, "rms": 1, "layer": 2}[norm.form]
