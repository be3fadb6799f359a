"""How the states of layers lie in memory: each layer's in slots, of which a slot has the state behind one token.

A step reads one slot and stores others, so earlier states stay until their slots are needed: a sequence can be
continued from them. Knows sizes, nothing of devices or sequences.
"""

from __future__ import annotations

from vkllm.model.spec import LayerSpec, ModelSpec

FEWEST_SLOTS, MOST_SLOTS = 6, 16
"""Slots of a sequence: those of the steps in flight, and at least three of earlier tokens."""

SHARE = 16
"""More slots than the fewest take at most this part of what the weights take."""

ALIGNMENT = 16
"""Numbers; states begin at multiples of it."""


def slot_words(layer: LayerSpec) -> tuple[int, int]:
    """Numbers of a layer's slot in front of its state (the columns before its convolution), and all of them."""
    columns, state = (-(-size // ALIGNMENT) * ALIGNMENT for size in layer.state_sizes)
    return columns, columns + state


def slot_bytes(spec: ModelSpec) -> int:
    """Bytes of a slot of all layers; 0 if none has a state."""
    return sum(4 * slot_words(layer)[1] for layer in spec.layers)


def n_state_slots(spec: ModelSpec, weights_bytes: int) -> int:
    """Slots of each layer in a model with so many bytes of weights; 0 if no layer has a state."""
    n_bytes = slot_bytes(spec)
    return max(min(weights_bytes // SHARE // n_bytes, MOST_SLOTS), FEWEST_SLOTS) if n_bytes else 0
