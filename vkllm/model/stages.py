"""A model cut into parts of neighbouring layers, each for a device of its own.

A part is a model like any other: all layers keep their numbers, and those of other parts are NO_LAYER. The first part
has the embedding, the last one the vocabulary projection; between them go the rows of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vkllm.model.spec import NO_LAYER, ModelSpec


def stages(spec: ModelSpec, layers: Sequence[range]) -> tuple[ModelSpec, ...]:
    """The part of each of these neighbouring ranges, which together are all layers."""
    return tuple(
        replace(
            spec,
            layers=tuple(layer if number in own else NO_LAYER for number, layer in enumerate(spec.layers)),
            receives=own.start > 0,
            sends=own.stop < spec.n_layers,
        )
        for own in layers
    )
