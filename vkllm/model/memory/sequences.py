"""How many sequences a plan has room for, and how many blocks and states they share.

Knows sizes and counts, nothing of devices: `plan.py` tries what fits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vkllm.model.memory.kernel_sizes import KV_BLOCK, MAX_NARROW
from vkllm.model.spec import ModelSpec

MOST_SEQUENCES = MAX_NARROW
"""Sequences that run at once, at most: as many as a step has rows."""

SLOTS_OF_SEQUENCE = 4
"""States of a sequence that runs beside the first: those of the steps in flight, and of the place where its prompt
began to differ."""

SPARE_SHARE = 16
"""If nobody asks for sequences, further ones take at most this part of what the weights take."""


@dataclass(frozen=True)
class Room:
    """What caches and states have room for.

    n_ctx: tokens of a sequence. n_sequences: that run at once. n_blocks: blocks of KV_BLOCK tokens that all share, in
    layers that see the whole context; n_window_blocks: in layers with a window, 0 if there are none. n_state_slots:
    states of each layer that has one.
    """

    n_ctx: int
    n_sequences: int
    n_blocks: int
    n_window_blocks: int
    n_state_slots: int


def room_for_one(spec: ModelSpec, n_ctx: int, max_rows: int, n_state_slots: int) -> Room:
    """Room for one sequence of n_ctx tokens, with steps of up to max_rows rows."""
    n_blocks = -(-n_ctx // KV_BLOCK)
    window = longest_window(spec)
    # where tokens see what follows them, all of a text is cached before any of it is read
    n_window_blocks = min(_window_blocks(window, max_rows), n_blocks) if spec.is_causal else n_blocks
    return Room(n_ctx, 1, n_blocks, n_window_blocks if window else 0, n_state_slots)


def room_for(n_sequences: int, one: Room, spec: ModelSpec) -> Room:
    """Room for so many sequences, which share the blocks of the one that `one` has room for.

    Of a layer with a window, each further sequence has blocks for its window and the rows of a narrow step: a long
    prompt runs alone. All together they have at most as many as in other layers. Of states, it has SLOTS_OF_SEQUENCE.
    """
    n_more, window = n_sequences - 1, longest_window(spec)
    n_window_blocks = one.n_window_blocks + (n_more * _window_blocks(window, MAX_NARROW) if window else 0)
    if window and not spec.is_causal:
        n_window_blocks = one.n_blocks
    return replace(
        one,
        n_sequences=n_sequences,
        n_window_blocks=min(n_window_blocks, one.n_blocks),
        n_state_slots=one.n_state_slots + (SLOTS_OF_SEQUENCE * n_more if one.n_state_slots else 0),
    )


def with_blocks(n_blocks: int, room: Room, one: Room, spec: ModelSpec) -> Room:
    """The same sequences with more blocks."""
    return room_for(room.n_sequences, replace(one, n_blocks=n_blocks), spec)


def longest_window(spec: ModelSpec) -> int:
    """The longest window of its layers; 0 if they see the whole context."""
    return max((layer.window for layer in spec.layers), default=0)


def _window_blocks(window: int, n_rows: int) -> int:
    """Blocks that hold what the rows of a step see: the window before the first row and the rows, which begin anywhere
    in a block."""
    return -(-(window + n_rows) // KV_BLOCK) + 1
