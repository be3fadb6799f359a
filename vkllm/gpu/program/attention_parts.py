"""Into which parts attention cuts the keys that a token sees, and how many workgroups share them.

The parts of a position are fixed (shaders/lib/parts.glsl), so that no number depends on a token's neighbours; how many
workgroups take them does not show in results. Pure: knows sizes only.
"""

from __future__ import annotations

from dataclasses import dataclass

from vkllm.gpu.program.kernels import MAX_NARROW
from vkllm.model.ops import Attention

LOG2_PARTS = 3
"""Of the number of parts that a doubling of the context adds; more fill a device sooner, but take longer to merge."""

ALIKE = 31
"""The `log2_parts` of layers with a window or chunks: all their parts are of equal length."""

WINDOW_PARTS = 16
"""Parts of a window or a chunk, if they are not too short."""


@dataclass(frozen=True)
class Parts:
    """As the constants of `attention` have it. most: parts that a token can see."""

    keys: int
    log2_parts: int
    most: int

    def n_sharing(self, n_rows: int, n_groups: int, n_wanted: int, n_wanted_of_row: int, room: int) -> int:
        """Workgroups that share the parts of a token: enough for about n_wanted of the step of n_rows rows, and for
        n_wanted_of_row of each, in case only one is deep. n_groups: workgroups that take the heads of a row. room:
        parts of a row that there is room for; without room for all, workgroups share nothing."""
        if self.most > room:
            return 1
        return max(min(max(n_wanted // (n_groups * n_rows), n_wanted_of_row // n_groups), self.most), 1)


def parts_of(op: Attention, stride: int, n_ctx: int, part_keys: int) -> Parts:
    """The parts of a layer. stride: keys that a workgroup takes together; a part is of whole ones. part_keys: of the
    first parts, at least."""
    keys = _up(part_keys, stride) * stride
    n_seen = {"none": op.window, "window": 2 * op.window, "all": 0}[op.ahead] or op.chunk
    if not n_seen:
        return Parts(keys, LOG2_PARTS, part_of(n_ctx - 1, keys, LOG2_PARTS) + 1)
    keys = _up(n_seen, WINDOW_PARTS * keys) * keys
    return Parts(keys, ALIKE, min(n_seen // keys + 2, _up(n_ctx, keys)))


def part_of(position: int, keys: int, log2_parts: int) -> int:
    """The part of a position, as in shaders/lib/parts.glsl."""
    part = position // keys
    doublings = max(part.bit_length() - 1 - log2_parts, 0)
    return (doublings << log2_parts) + (part >> doublings)


def partial_words(n_heads: int, value_dim: int) -> int:
    """Words that a part of a step of MAX_NARROW rows takes."""
    return MAX_NARROW * n_heads * (value_dim + 4)


def _up(n: int, step: int) -> int:
    return -(-n // step)
