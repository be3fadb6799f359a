"""Which neighbouring operations of a step of one token become one link.

`decode` is the Decode (`decode.py`) that makes them; the kernels decide what they can compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vkllm.gpu.program.links import Link
from vkllm.model.ops import HeadNormalization, Kind, Op


def _can_fuse_heads(op: HeadNormalization) -> bool:
    """Whether attention_fused can compute a norm of queries and keys."""
    is_plain = op.norm.form == "none" or (op.norm.form == "rms" and not op.norm.has_weight_per_head)
    return op.norm.over == "head" and is_plain


@dataclass(frozen=True)
class Fusion:
    """Neighbouring operations that become one link: their kinds, the condition, and what makes it."""

    kinds: tuple[Kind, ...]
    can: Callable[..., bool]
    links: Callable[..., list[Link]]

    def suits(self, decode: Any, ops: Sequence[Op]) -> bool:
        """Whether the first of these operations are of its kinds and can be fused."""
        fused = ops[: len(self.kinds)]
        return tuple(op.kind for op in fused) == self.kinds and self.can(decode, *fused)


FUSIONS = (
    Fusion(
        (
            *("norm", "matvec", "route", "matvec", "activate", "matvec"),
            *("expert_matvec", "activate", "expert_matvec", "expert_sum"),
        ),
        lambda decode, *ops: decode.can_fuse_mixture(*ops),
        lambda decode, *ops: decode.mixture(*ops),
    ),
    Fusion(
        ("norm", "matvec", "route", "expert_matvec", "activate", "expert_matvec", "expert_sum"),
        lambda decode, *ops: decode.can_fuse_mixture(*ops),
        lambda decode, *ops: decode.mixture(*ops),
    ),
    Fusion(
        ("norm", "matvec", "route"),
        lambda decode, norm, *ops: not norm.is_shared and decode.experts.can_route_alone(norm, *ops),
        lambda decode, *ops: [decode.route(*ops)],
    ),
    Fusion(
        ("norm", "expert_matvec", "activate"),
        lambda decode, norm, *ops: not norm.is_shared and decode.experts.can_gate(norm, *ops),
        lambda decode, *ops: [decode.experts.gate_up(*ops)],
    ),
    Fusion(
        ("expert_matvec", "expert_sum"),
        lambda decode, *ops: decode.experts.can_sum(*ops),
        lambda decode, *ops: [decode.experts.down(*ops)],
    ),
    Fusion(
        ("norm", "matvec", "activate"),
        lambda decode, norm, matvec, activate: decode.can_fuse(matvec, norm, activate),
        lambda decode, norm, matvec, activate: [decode.matvec(matvec, norm, activate)],
    ),
    Fusion(
        ("norm", "matvec"),
        lambda decode, norm, matvec: decode.can_fuse(matvec, norm),
        lambda decode, norm, matvec: [decode.matvec(matvec, norm)],
    ),
    Fusion(
        ("head_norm", "rope", "attention"),
        lambda decode, norm, rope, attention: _can_fuse_heads(norm),
        lambda decode, norm, rope, attention: [decode.attention(attention, rope, norm)],
    ),
    Fusion(
        ("rope", "attention"),
        lambda decode, rope, attention: True,
        lambda decode, rope, attention: [decode.attention(attention, rope)],
    ),
    Fusion(
        ("attention",),
        lambda decode, attention: True,
        lambda decode, attention: [decode.attention(attention)],
    ),
    Fusion(
        ("norm",),
        lambda decode, norm: decode.can_chain_norms(),
        lambda decode, norm: [decode.norm(norm)],
    ),
    Fusion(
        ("all_reduce",),
        lambda decode, op: decode.can_chain_sums(),
        lambda decode, op: [decode.all_reduce(op)],
    ),
    Fusion(
        ("convolution", "delta_net", "gated_norm"),
        lambda decode, *ops: decode.states.can_fuse(*ops),
        lambda decode, *ops: [decode.states.delta_net(*ops)],
    ),
    Fusion(
        ("matvec",),
        lambda decode, matvec: decode.can_fuse(matvec),
        lambda decode, matvec: decode.matvec_in_parts(matvec),
    ),
)
"""All fusions of a step of one token; the first that applies is used."""
