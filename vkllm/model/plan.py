"""Where a model's parts live: ModelSpec and tensor table + device limits -> MemoryPlan. Allocates nothing.

Today there is one tier, the device's own memory, and the plan says whether all fits into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vkllm.errors import OutOfDeviceMemory
from vkllm.formats.gguf import TensorInfo
from vkllm.formats.quants import weight_format
from vkllm.model.graph import widths
from vkllm.model.spec import ModelSpec, expected_shapes

MARGIN = 0.95
"""Share of a heap's budget that a plan may take; the rest is the driver's own."""


@dataclass(frozen=True)
class DeviceLimits:
    """What a device can hold. memory_bytes: budget of the memory that the plan may use."""

    memory_bytes: int
    max_binding_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each part. cache_bytes: keys and values of n_ctx tokens. arena_bytes: activations of max_rows rows."""

    n_ctx: int
    weights_bytes: int
    cache_bytes: int
    arena_bytes: int

    @property
    def total_bytes(self) -> int:
        """All that the plan allocates."""
        return self.weights_bytes + self.cache_bytes + self.arena_bytes


def cache_bytes_per_token(spec: ModelSpec) -> int:
    """Bytes of one token's keys and values in all layers, as float16."""
    return 2 * 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim


def decode_bytes(spec: ModelSpec, tensors: Mapping[str, TensorInfo], n_past: float) -> float:
    """Bytes that a device reads for a step of one token: each weight once, keys and values of n_past tokens."""
    read = set(expected_shapes(spec)) - ({"token_embd.weight"} - {spec.output_weight})  # of embeddings, a row
    return 4 * sum(sum(_plane_words(tensors[name])) for name in read) + n_past * cache_bytes_per_token(spec)


def _plane_words(tensor: TensorInfo) -> tuple[int, int]:
    return weight_format(tensor.format).plane_words(math.prod(tensor.shape))


def plan(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    limits: DeviceLimits,
    n_ctx: int,
    max_rows: int,
    head_rows: int = 1,
) -> MemoryPlan:
    """Plans a model. head_rows: rows whose logits the device holds at once.

    Raises OutOfDeviceMemory, with what would fit, if it cannot be held.
    """
    weights_bytes = 0
    for name in expected_shapes(spec):
        quants, scales = _plane_words(tensors[name])
        weights_bytes += 4 * (quants + scales)
        if 4 * quants > limits.max_binding_bytes:
            raise OutOfDeviceMemory(
                f"tensor {name} takes {4 * quants:,} bytes, more than this device can bind at once "
                f"({limits.max_binding_bytes:,} bytes); use a model with a smaller vocabulary or a smaller quantization"
            )
    made = MemoryPlan(
        n_ctx=n_ctx,
        weights_bytes=weights_bytes,
        cache_bytes=n_ctx * cache_bytes_per_token(spec),
        arena_bytes=sum(8 * max_rows * width for name, width in widths(spec).items() if name != "logits")
        + 4 * (head_rows + 1) * spec.n_vocab  # and one row on the host
        + 4 * n_ctx * spec.rope_dims,
    )
    available = int(limits.memory_bytes * MARGIN)
    if made.total_bytes > available:
        room = available - made.weights_bytes - made.arena_bytes
        fits = max(room // cache_bytes_per_token(spec), 0)
        advice = f"a context of {fits} tokens would fit" if fits >= 256 else "use a smaller model or quantization"
        raise OutOfDeviceMemory(
            f"the model needs {made.total_bytes:,} bytes with a context of {n_ctx} tokens, "
            f"and the device has {available:,}; {advice}"
        )
    return made
