"""How a text of several steps goes through the layers of a model that reads in both directions.

Attention needs the keys and values of the whole text. So the graph is cut before each attention: all steps of a text
run a segment before any of them runs the next, and what a segment leaves for the next one is kept, step by step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache

from vkllm.model.graph import decoder, widths
from vkllm.model.ops import Attention, Op
from vkllm.model.spec import ModelSpec


@dataclass(frozen=True)
class Segment:
    """Neighbouring operations. carried: the activations that they read from the segments before."""

    ops: tuple[Op, ...]
    carried: tuple[str, ...]


@lru_cache(maxsize=8)
def segments(spec: ModelSpec) -> tuple[Segment, ...]:
    """The decoder in segments, of which all but the first begin with an attention."""
    ops = decoder(spec)
    starts = [0, *(i for i, op in enumerate(ops) if isinstance(op, Attention)), len(ops)]
    names = frozenset(widths(spec))
    live, found = {"x"}, []
    for start, end in zip(starts[-2::-1], starts[:0:-1], strict=True):
        for op in reversed(ops[start:end]):
            live = (live - {op.output}) | read_by(op, names)
        found.append(Segment(ops[start:end], tuple(sorted(live))))
    return tuple(reversed(found))


def carried(spec: ModelSpec) -> tuple[str, ...]:
    """All activations that are kept between segments, and `x`, which the last one leaves."""
    return tuple(sorted({"x", *(name for segment in segments(spec) for name in segment.carried)}))


def read_by(op: Op, names: Iterable[str]) -> set[str]:
    """Which of these activations an operation reads."""
    return {getattr(op, field.name) for field in fields(op) if field.name != "output"} & set(names)
