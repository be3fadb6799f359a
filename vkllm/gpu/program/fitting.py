"""Smaller workgroups for devices that need them: the table's choices fit most devices, not all.

Pure: knows devices and heads by their descriptions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vkllm.errors import UnsupportedDevice
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.device.requirements import described, is_plain
from vkllm.gpu.program.attention_operations import heads_together, lanes_of_key
from vkllm.gpu.program.choices import Tuning
from vkllm.gpu.program.kernels import MAX_PARTS
from vkllm.model.spec import LayerSpec


def fitted_to_layers(choices: Tuning, info: DeviceInfo, layers: Sequence[LayerSpec]) -> Tuning:
    """The choices, with workgroups that fit for the heads of all layers. Raises UnsupportedDevice."""
    shapes = {(layer.n_heads // layer.n_kv_heads, layer.head_dim) for layer in layers if layer.has_attention}
    for n_sharing, head_dim in sorted(shapes):
        choices = fitted(choices, info, n_sharing, head_dim)
    return choices


def fitted(choices: Tuning, info: DeviceInfo, n_sharing: int, head_dim: int) -> Tuning:
    """The choices, with smaller workgroups where the device's limits or shared memory require them.

    n_sharing: query heads that share a key head. Raises UnsupportedDevice if even the smallest do not fit.
    """
    most = most_invocations(info)

    def size(wanted: int, most: int = most) -> int:
        return max(min(wanted, most), info.subgroup_size)

    decode = replace(choices.decode, size=size(choices.decode.size), attention_size=size(choices.decode.attention_size))
    choices = replace(
        choices,
        local_size=size(choices.local_size, most // 4),  # some kernels take four times as many
        attention_size=size(choices.attention_size),
        decode=decode,
    )
    if is_plain(info):
        choices = replace(choices, has_matmul=False, has_tiled_attention=False)
    while True:
        prefill_bytes, decode_bytes = attention_bytes(choices, info, n_sharing, head_dim)
        if max(prefill_bytes, decode_bytes) <= info.max_shared_bytes:
            return choices
        if decode_bytes > info.max_shared_bytes and choices.decode.attention_size > info.subgroup_size:
            smaller = replace(choices.decode, attention_size=choices.decode.attention_size // 2)
            choices = replace(choices, decode=smaller)
        elif prefill_bytes > info.max_shared_bytes and choices.attention_size > info.subgroup_size:
            choices = replace(choices, attention_size=choices.attention_size // 2)
        elif prefill_bytes > info.max_shared_bytes and choices.attention_queries > 1:
            choices = replace(choices, attention_queries=choices.attention_queries // 2)
        else:
            raise UnsupportedDevice(
                f"{described(info)} has {info.max_shared_bytes:,} bytes of shared memory, too little for the attention "
                f"of {head_dim} dimensions a head; choose another device (`vkllm devices` lists them)"
            )


def most_invocations(info: DeviceInfo) -> int:
    """Most invocations of a workgroup: a power of two."""
    most = info.max_workgroup_invocations
    if not is_plain(info) and info.max_workgroup_subgroups:
        most = min(most, info.subgroup_size * info.max_workgroup_subgroups)
    return 1 << most.bit_length() - 1


def attention_bytes(choices: Tuning, info: DeviceInfo, n_sharing: int, head_dim: int) -> tuple[int, int]:
    """Bytes of shared memory of a workgroup of attention, and of attention_fused."""
    heads = heads_together(n_sharing, head_dim)
    queries = max(choices.attention_queries // heads, 1) * heads
    lanes = lanes_of_key(head_dim, info.subgroup_size)

    def online_softmax(size: int, n_queries: int) -> int:
        return 4 * (size // lanes) * n_queries * (head_dim + 3)

    attention = online_softmax(choices.attention_size, queries)
    if is_plain(info):  # scores are summed up in shared memory, and nothing is fused
        return attention + 4 * choices.attention_size * queries * choices.keys_at_once, 0
    # queries and the newest key and value, factors of their norms, and parts
    others = 4 * (heads + 1) * head_dim + 4 * (heads + 1) + 12 * heads * MAX_PARTS
    return attention, online_softmax(choices.decode.attention_size, heads) + others + 16
