"""Which choices there are to try: the fields of a Tuning, the steps from one value to the next, what a device can run.

Pure: knows devices and models by their descriptions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vkllm.formats.gguf import TensorInfo, main_format
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.program.choices import Tuning, may_chain, tuning
from vkllm.gpu.program.fitting import attention_bytes, most_invocations
from vkllm.model.spec import ModelSpec

DECODE_FIELDS = (
    *("decode.size", "decode.groups", "decode.rows", "decode.unroll", "decode.is_chained"),
    *(
        "decode.attention_size",
        "decode.keys_at_once",
        "decode.attention_groups",
        "decode.steps_touched",
        "decode.doubles",
    ),
)
"""Fields for steps of one token; those that mattered most on an H100 come first."""

PREFILL_FIELDS = (
    *("has_tiled_attention", "tile_tokens", "tile_rows", "attention_size", "keys_at_once", "attention_queries"),
    *("has_matmul", "narrow_rows", "steps_ahead", "steps_ahead_wide", "matmul_size"),
)
"""Fields for steps of several tokens."""

_MATVEC_FIELDS = ("tile_tokens", "tile_rows")
_MATMUL_FIELDS = ("steps_ahead", "steps_ahead_wide")
_ATTENTION_FIELDS = ("attention_size", "keys_at_once", "attention_queries")

_MOST = {
    **{"rows": 8, "unroll": 8, "keys_at_once": 16, "tile_rows": 16, "tile_tokens": 16, "attention_queries": 16},
    **dict.fromkeys(_MATMUL_FIELDS, 4),
}
_MOST_GROUPS = 4096
_MOST_SUBGROUPS = 64
"""Subgroups of a workgroup that matvec_fused has room for."""


@dataclass(frozen=True)
class ModelKind:
    """The properties of a model that decide which choices are best. n_sharing: query heads that share a key head."""

    weight_format: str
    n_sharing: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.weight_format}, {self.n_sharing} query heads a key head, {self.head_dim} dimensions"


def model_kind(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> ModelKind:
    """The kind of a model, by the format that most of its bytes have."""
    return ModelKind(main_format(tensors), spec.n_heads // spec.n_kv_heads, spec.head_dim)


def value_of(choices: Tuning, field: str) -> int:
    """The value of a field, named as in DECODE_FIELDS and PREFILL_FIELDS."""
    owner, _, name = field.rpartition(".")
    value: int = getattr(choices.decode if owner else choices, name)
    return value


def moved(choices: Tuning, field: str, *, up: bool) -> Tuning | None:
    """The choices with the next value of a field: the other one, one more or less, the double or the half."""
    value, (owner, _, name) = value_of(choices, field), field.rpartition(".")
    new: int
    if isinstance(value, bool):
        new = up
    elif name == "steps_touched":
        new = value + 1 if up else value - 1
    else:
        new = 2 * value if up else value // 2
    if new == value or new < 0:
        return None
    changes: dict[str, Any] = {name: new}
    return replace(choices, decode=replace(choices.decode, **changes)) if owner else replace(choices, **changes)


def fields_to_try(choices: Tuning, names: tuple[str, ...]) -> tuple[str, ...]:
    """The fields that make a difference: with cooperative matrices, wide steps use no matvec or plain attention."""
    no_matvec, no_attention = choices.has_matmul, choices.has_tiled_attention
    return tuple(
        name
        for name in names
        if not (no_matvec and name in _MATVEC_FIELDS)
        and not (no_attention and name in _ATTENTION_FIELDS)
        and (no_matvec or name not in ("narrow_rows", "matmul_size", *_MATMUL_FIELDS))
    )


def is_possible(choices: Tuning, info: DeviceInfo, kind: ModelKind) -> bool:
    """Whether a device can run the choices: its limits are kept, and no value is absurd."""
    decode = choices.decode
    sizes = (choices.attention_size, decode.attention_size, decode.size)
    small_names = ("tile_rows", "tile_tokens", "attention_queries", "keys_at_once", *_MATMUL_FIELDS)
    small = {name: getattr(choices, name) for name in small_names}
    small_decode = {name: getattr(decode, name) for name in ("rows", "unroll", "keys_at_once")}
    return (
        all(_is_power(size) and info.subgroup_size <= size <= most_invocations(info) for size in sizes)
        and decode.size <= _MOST_SUBGROUPS * info.subgroup_size
        # some kernels take four times as many invocations
        and _is_power(choices.local_size)
        and info.subgroup_size <= choices.local_size <= most_invocations(info) // 4
        and choices.narrow_rows in (32, 64, 128)
        and choices.matmul_size in (128, 256)
        and choices.matmul_size >= info.subgroup_size
        and all(_is_power(value) and value <= _MOST[name] for name, value in (*small.items(), *small_decode.items()))
        and 0 < decode.groups <= _MOST_GROUPS
        and 0 < decode.attention_groups <= _MOST_GROUPS
        and 0 <= decode.steps_touched <= 4
        and (not decode.is_chained or may_chain(info))
        and (not (choices.has_matmul or choices.has_tiled_attention) or tuning(info).has_matmul)
        and max(attention_bytes(choices, info, kind.n_sharing, kind.head_dim)) <= info.max_shared_bytes
    )


def _is_power(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0
