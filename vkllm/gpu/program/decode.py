"""A step of one token in few dispatches: operations fused, and on some devices chained instead of ordered by barriers.

Knows which neighbours in the graph can be one dispatch and what a chain needs (shaders/lib/chain.glsl). Everything that
cannot be fused is `gpu/program/operations.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vkllm.formats.quants import weight_format
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.choices import DecodeTuning
from vkllm.gpu.program.kernels import ATTENTION_PIECE, KERNELS, KV_BLOCK, LINK_WORDS, MAX_PARTS
from vkllm.gpu.program.operations import Operations, cache_constants, heads_together, lanes_of_key
from vkllm.model.graph import Op, widths
from vkllm.model.spec import ModelSpec

MAX_LINKS_OF_LAYER = 16
"""More links than a layer's nine operations become, were each its own and long matvecs in parts."""


def _arrivals(spec: ModelSpec, layer: int) -> int:
    """Where the chain counts the parts of attention that have ended in a layer, after the counts of the links."""
    return LINK_WORDS * MAX_LINKS_OF_LAYER * (spec.n_layers + 1) + spec.n_heads * layer


@dataclass(frozen=True)
class Link:
    """Dispatches that may run side by side. n_groups: workgroups of all; 0 if the next link cannot wait for them."""

    dispatches: tuple[Dispatch, ...]
    n_groups: int = 0

    @property
    def has_chain(self) -> bool:
        """Whether its dispatches take part in a chain."""
        return self.n_groups > 0


class Decode:
    """Makes the dispatches of steps of one token. step: the step buffer on the device.

    chain: where links count their workgroups, to be cleared before each step.
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
        self._step = step
        self._tuning = tuning
        self._operations = operations
        self._made: dict[tuple[Op, ...], list[Link]] = {}
        self.chain = device.buffer(-(-_arrivals(spec, spec.n_layers) // 4) * 4)
        n_pieces = -(-buffers.n_blocks * KV_BLOCK // ATTENTION_PIECE)
        self._heads = heads_together(spec.n_heads // spec.n_kv_heads)
        self._n_parts = min(n_pieces, max(tuning.attention_groups // spec.n_heads, 1), MAX_PARTS)
        self._partials = device.buffer(spec.n_heads * self._n_parts * (spec.head_dim + 4))

    def dispatches(self, ops: Sequence[Op]) -> list[Dispatch]:
        """Dispatches of neighbouring operations, in order."""
        return _chained([link for fused in self._fusions(ops) for link in self._links(fused)])

    def _fusions(self, ops: Sequence[Op]) -> Iterator[tuple[Op, ...]]:
        """Cuts operations into groups that become one dispatch."""
        rest = list(ops)
        while rest:
            kinds = [op.kind for op in rest[:3]]
            fuses_norm = kinds[:2] == ["rms_norm", "matvec"] and self._can_fuse(*rest[:2])
            if fuses_norm and kinds[2:] == ["swiglu"] and self._is_one(rest[1]):
                n = 3
            elif fuses_norm or kinds[:2] == ["rope", "attention"]:
                n = 2
            else:
                n = 1
            yield tuple(rest[:n])
            del rest[:n]

    def _links(self, ops: tuple[Op, ...]) -> list[Link]:
        if ops not in self._made:
            match [op.kind for op in ops]:
                case ["rope", "attention"]:
                    self._made[ops] = [self._attention(*ops)]
                case ["rms_norm", "matvec", *_]:
                    self._made[ops] = [self._matvec(ops[1], ops[0], ops[-1])]
                case ["matvec"] if self._can_fuse(None, ops[0]):
                    self._made[ops] = self._matvec_parts(ops[0])
                case _:
                    self._made[ops] = [Link(tuple(d for op in ops for d in self._operations.of(op, 1)))]
        return self._made[ops]

    def _is_one(self, op: Op) -> bool:
        """Whether gate and up stand above each other as one matrix."""
        return len(self._buffers.matrices[op.weights]) == 1

    def _can_fuse(self, norm: Op | None, matvec: Op) -> bool:
        is_quantized = all(weight_format(p.format).is_quantized for p in self._buffers.matrices[matvec.weights])
        # a norm needs all columns at once
        return is_quantized and (norm is None or widths(self._spec)[matvec.inputs[0]] <= self._most_columns())

    def _most_columns(self) -> int:
        """Columns whose activations fit into a workgroup's shared memory as q16 blocks, and a few sums."""
        return (self._device.info.max_shared_bytes - 1024) * 4 // 9 // 256 * 256

    def _matvec_parts(self, op: Op) -> list[Link]:
        """A matvec without a norm, in parts of its columns where not all fit into shared memory."""
        columns, most = widths(self._spec)[op.inputs[0]], self._most_columns()
        n_parts = -(-columns // most)
        part = -(-columns // n_parts // 256) * 256
        links = []
        for first in range(0, columns, part):
            summed = op if first == 0 else replace(op, add=op.output)
            links.append(self._matvec(summed, None, op, first, min(part, columns - first)))
        return links

    def _matvec(self, op: Op, norm: Op | None, last: Op, first_column: int = 0, n_columns: int | None = None) -> Link:
        """op with the norm before it; last: the operation whose output it writes, op itself or its swiglu."""
        tuning, is_gated = self._tuning, last.kind == "swiglu"
        source = self._buffers.activations[norm.inputs[0] if norm else op.inputs[0]].values
        y = self._buffers.activations[last.output].values
        norm_weight = self._buffers.vectors[norm.weights[0]] if norm else source  # bound, but not read
        add = self._buffers.activations[op.add].values if op.add else source
        rows = max(tuning.rows // (2 if is_gated else 1), 1)
        rows_per_group = rows * max(tuning.size // self._device.info.subgroup_size, 1)
        eps = int(np.float32(self._spec.norm_eps).view(np.uint32))
        dispatches: list[Dispatch] = []
        y_offset = n_all = 0
        for planes in self._buffers.matrices[op.weights]:
            n_rows = planes.n_rows // 2 if is_gated else min(planes.n_rows, widths(self._spec)[last.output] - y_offset)
            n_groups = _even(-(-n_rows // rows_per_group), tuning.groups)
            dispatches.append(
                self._device.dispatch(
                    KERNELS["matvec_fused"],
                    (planes.quants, planes.scales, source, norm_weight, add, y, self.chain),
                    constants=(
                        *(tuning.size, planes.n_columns, first_column, n_columns or planes.n_columns),
                        *(rows, tuning.unroll, int(norm is not None), int(is_gated), int(op.add is not None)),
                        *(eps, int(tuning.is_chained), tuning.steps_touched, int(tuning.doubles)),
                    ),
                    groups=(n_groups, 1),
                    push=(n_rows, y_offset, 0, 0),
                    weight_format=planes.format,
                    is_independent=y_offset > 0,
                )
            )
            n_all += n_groups
            y_offset += n_rows
        return Link(tuple(dispatches), n_all if tuning.is_chained else 0)

    def _attention(self, rope: Op, attention: Op) -> Link:
        spec, tuning = self._spec, self._tuning
        k_cache, v_cache = self._buffers.caches[rope.layer]
        qkv, y = self._buffers.activations[rope.inputs[0]].values, self._buffers.activations[attention.output]
        assert y.q16 is not None and y.scales is not None
        n_groups = spec.n_heads // self._heads * self._n_parts
        lanes = lanes_of_key(spec.head_dim, self._device.info.subgroup_size)
        dispatch = self._device.dispatch(
            KERNELS["attention_fused"],
            (
                *(qkv, self._buffers.vectors["rope_table"], k_cache, v_cache, self._partials),
                *(y.values, y.q16, y.scales, self._step, self.chain),
            ),
            constants=(
                *(tuning.attention_size, spec.n_heads, spec.n_kv_heads, spec.head_dim),
                *(lanes, self._heads, spec.rope_dims, int(spec.rope_pairing == "interleaved")),
                *(tuning.keys_at_once, *cache_constants(self._buffers), int(tuning.is_chained)),
            ),
            groups=(n_groups, 1),
            push=(self._n_parts, _arrivals(spec, rope.layer), 0, 0),
        )
        return Link((dispatch,), n_groups if tuning.is_chained else 0)


def _even(n: int, most: int) -> int:
    """Workgroups for n portions of work, at most `most` (0: no limit), each taking as many as the others."""
    return n if most == 0 or n <= most else -(-n // -(-n // most))


def _chained(links: Sequence[Link]) -> list[Dispatch]:
    """Numbers the links; one that follows another of the chain waits for it instead of for a barrier."""
    dispatches: list[Dispatch] = []
    n_awaited = 0
    for number, link in enumerate(links, start=1):
        for dispatch in link.dispatches:
            if link.has_chain:
                is_independent = dispatch.is_independent or n_awaited > 0
                chained = dispatch.with_push(*dispatch.push[:-2], number, n_awaited)
                dispatch = replace(chained, is_independent=is_independent)
            dispatches.append(dispatch)
        n_awaited = link.n_groups
    return dispatches
