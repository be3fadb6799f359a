"""About what one rank holds of a model: a smaller ModelSpec and tensor table, from which a plan follows.

An estimate by proportions. Knows no devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vkllm.formats.gguf import TensorInfo
from vkllm.model.memory.placement import STEP_ROWS
from vkllm.model.spec import ModelSpec

Part = tuple[ModelSpec, dict[str, TensorInfo]]

EMBEDDING = "token_embd.weight"


def tensor_part(spec: ModelSpec, tensors: Mapping[str, TensorInfo], part: float) -> Part:
    """A part of every matrix but the embedding table, and of the heads whose keys and values are cached."""
    layers = tuple(
        replace(layer, n_kv_heads=max(round(layer.n_kv_heads * part), 1) if layer.n_kv_heads else 0)
        for layer in spec.layers
    )
    return replace(spec, layers=layers), {name: _rows(info, part) for name, info in tensors.items()}


def layers_part(spec: ModelSpec, tensors: Mapping[str, TensorInfo], layers: range) -> Part:
    """These layers; the embedding with the first of the model, the vocabulary projection with the last."""
    first, last = layers.start == 0, layers.stop == spec.n_layers
    outside = {EMBEDDING: first or (last and spec.output_weight == EMBEDDING), spec.output_weight: last}
    kept: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        number = int(name.split(".")[1]) if name.startswith("blk.") else None
        if number is None:
            kept[name] = info if outside.get(name, True) else _rows(info, 0)
        elif number in layers:
            kept[name.replace(f"blk.{number}.", f"blk.{number - layers.start}.", 1)] = info
    return replace(spec, layers=spec.layers[layers.start : layers.stop]), kept


def _rows(info: TensorInfo, part: float) -> TensorInfo:
    if len(info.shape) < 2 or (info.name == EMBEDDING and part):
        return info
    n_rows = max(round(info.shape[-2] * part / STEP_ROWS), 1) * STEP_ROWS
    return replace(info, shape=(*info.shape[:-2], min(n_rows, info.shape[-2]), info.shape[-1]))
