"""Which operations of a rank's step of many rows can run for either half of its rows alone.

Then one half is computed while the sums of the other travel. Rows see only rows before them, so the second half is like
a later chunk of the same prompt. Knows no devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vkllm.model.expert_ops import ExpertMatvec, ExpertSum, Route
from vkllm.model.graph import decoder, widths
from vkllm.model.ops import (
    Activate,
    AllReduce,
    Attention,
    Embed,
    HeadNormalization,
    Matvec,
    Norm,
    Op,
    Rotation,
)
from vkllm.model.segments import read_by
from vkllm.model.shards.many_rows import of_many_rows
from vkllm.model.spec import ModelSpec
from vkllm.model.state_ops import LatentRotation

LEAST_SHARE = 0.5
"""Of the pieces between sums, so many must be cut: a sum between two that are not waits for itself in both halves."""


@dataclass(frozen=True)
class Piece:
    """Operations up to a sum over ranks. is_cut: they run for each half; otherwise for all rows, as half would cost
    about as much: experts are read once for all rows that have chosen them. total: the sum behind them, which is of a
    half in any case; None behind the last one."""

    ops: tuple[Op, ...]
    is_cut: bool
    total: AllReduce | None


def pieces_of(spec: ModelSpec) -> tuple[Piece, ...]:
    """The operations of a rank for a step of many rows; none where such a step is better left whole. spec: of the rank;
    the pieces of all ranks end with the same sums."""
    pieces: list[Piece] = []
    ops: list[Op] = []
    for op in of_many_rows(decoder(spec)):
        if isinstance(op, AllReduce):
            pieces.append(_piece(ops, op))
            ops = []
        elif not _may_be_halved(op) and not _is_of_experts(op):
            return ()
        else:
            ops.append(op)
    if ops:
        pieces.append(_piece(ops, None))
    n_cut = sum(piece.is_cut for piece in pieces)
    has_sums = any(piece.total is not None for piece in pieces)
    return tuple(pieces) if has_sums and n_cut >= LEAST_SHARE * len(pieces) and _fit_together(pieces, spec) else ()


def _piece(ops: Sequence[Op], total: AllReduce | None) -> Piece:
    return Piece(tuple(ops), not any(map(_is_of_experts, ops)), total)


def _is_of_experts(op: Op) -> bool:
    """Whether it reads weights that the rows choose."""
    return isinstance(op, Route | ExpertSum) or (isinstance(op, ExpertMatvec) and op.routes is not None)


def _may_be_halved(op: Op) -> bool:
    """Whether a row's result depends on no row behind it, and on rows before it only by the cache."""
    if isinstance(op, Attention):
        return op.ahead == "none"
    kinds = Embed | Norm | Matvec | HeadNormalization | Rotation | LatentRotation | Activate | ExpertMatvec
    return isinstance(op, kinds)


def _fit_together(pieces: Sequence[Piece], spec: ModelSpec) -> bool:
    """Whether rows of the second half lie where operations on all rows find them, and the other way round: in rows as
    wide as those of the widest operation that writes them."""
    columns = widths(spec)
    of_halves: list[Op] = [op for piece in pieces if piece.is_cut for op in piece.ops]
    of_halves += [piece.total for piece in pieces if piece.total is not None]
    of_all = [op for piece in pieces if not piece.is_cut for op in piece.ops]
    names = [{name for op in ops for name in {op.output} | read_by(op, columns)} for ops in (of_halves, of_all)]
    shared = (names[0] & names[1]) | {"x"}
    writing = [op for op in (*of_halves, *of_all) if op.output in shared]
    return all(
        (op.output_width or op.width if isinstance(op, Norm) else op.width) == columns[op.output] for op in writing
    )
