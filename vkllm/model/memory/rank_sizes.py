"""About what one rank holds of a model that is split by layers: a smaller ModelSpec and tensor table.

Knows no devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vkllm.formats.gguf import TensorInfo
from vkllm.model.memory.placement import STEP_ROWS
from vkllm.model.spec import ModelSpec

Part = tuple[ModelSpec, dict[str, TensorInfo]]

EMBEDDING = "token_embd.weight"


def layers_part(spec: ModelSpec, tensors: Mapping[str, TensorInfo], layers: range) -> Part:
    """These layers; the embedding with the first of the model, the vocabulary projection with the last."""
    first, last = layers.start == 0, layers.stop == spec.n_layers
    outside = {EMBEDDING: first or (last and spec.output_weight == EMBEDDING), spec.output_weight: last}
    kept: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        number = int(name.split(".")[1]) if name.startswith("blk.") else None
        if number is None:
            kept[name] = info if outside.get(name, True) else _rows(info, STEP_ROWS)
        elif number in layers:
            kept[name.replace(f"blk.{number}.", f"blk.{number - layers.start}.", 1)] = info
    return replace(spec, layers=spec.layers[layers.start : layers.stop]), kept


def _rows(info: TensorInfo, n_rows: int) -> TensorInfo:
    return replace(info, shape=(n_rows, info.shape[-1])) if len(info.shape) == 2 else info
