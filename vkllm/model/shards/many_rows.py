"""What steps of many rows do otherwise than those of few where a model is divided among ranks.

Their sums over ranks move so much that ranks hand over eight numbers in 16 bytes (`shared_exponent.py`). The residual
stream, which rounding would change again and again, stays out of that: every rank adds it to the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vkllm.model.expert_ops import ExpertSum
from vkllm.model.ops import AllReduce, Matvec, Op
from vkllm.model.shards.shared_exponent import EIGHT


def of_many_rows(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The operations of a rank for a step of more rows than a narrow one has; of a whole model, the same."""
    sums = [op for op in ops if isinstance(op, AllReduce) and op.width % EIGHT == 0]
    residuals = {(total.input, total.residual) for total in sums}
    return tuple(_of_many_rows(op, residuals) for op in ops)


def _of_many_rows(op: Op, residuals: set[tuple[str, str | None]]) -> Op:
    match op:
        case AllReduce() if (op.input, op.residual) in residuals:
            return replace(op, add=op.residual, is_packed=True)
        case Matvec() | ExpertSum() if (op.output, op.add) in residuals:
            return replace(op, add=None)
    return op
