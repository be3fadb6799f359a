"""How much of a model each of several devices takes: proportions by speed and room, and layers by proportions.

Pure: knows sizes and speeds, no files and no devices.
"""

from __future__ import annotations

from collections.abc import Sequence

from vkllm.errors import InvalidParameter, counted
from vkllm.model.memory.limits import DeviceLimits, without_margin
from vkllm.model.spec import ModelSpec

NEARLY_EQUAL = 1.15
"""Devices whose speeds differ by less than this factor get equal parts: two measurements of one card differ too."""


def proportions(devices: Sequence[DeviceLimits], needed_bytes: int, fixed_bytes: int = 0) -> tuple[float, ...]:
    """The part of each device, in order; together 1.

    In proportion to how fast they read their own memory. A device that has no room for that takes what fits, and the
    others the rest, again by speed. Where all together have too little, in proportion to room. needed_bytes: of what is
    divided. fixed_bytes: what each device needs besides.
    """
    rooms = [max(without_margin(device.memory_bytes) - fixed_bytes, 0) for device in devices]
    speeds = [device.speeds.local_bytes_per_s for device in devices]
    if max(speeds) < NEARLY_EQUAL * min(speeds):
        speeds = [1.0] * len(speeds)
    if sum(rooms) <= needed_bytes:
        return _normal(rooms if sum(rooms) else speeds)
    parts = [0.0] * len(devices)
    free = list(range(len(devices)))
    left = float(needed_bytes)
    while free:
        whole = sum(speeds[i] for i in free)
        full = [i for i in free if left * speeds[i] / whole > rooms[i]]
        if not full:
            for i in free:
                parts[i] = left * speeds[i] / whole
            break
        for i in full:
            parts[i] = float(rooms[i])
        left -= sum(rooms[i] for i in full)
        free = [i for i in free if i not in full]
    return _normal(parts)


def asked_proportions(tensor_split: Sequence[float], n_devices: int) -> tuple[float, ...]:
    """The part of each device as -ts asks for it; together 1. Raises InvalidParameter."""
    if len(tensor_split) != n_devices:
        raise InvalidParameter(
            f"tensor_split (-ts) takes one number for each device, here {n_devices}, not {len(tensor_split)}"
        )
    if min(tensor_split) < 0 or not sum(tensor_split):
        raise InvalidParameter("tensor_split (-ts) takes numbers of 0 or more, and one of them above 0")
    return _normal(tensor_split)


def cuts(spec: ModelSpec) -> tuple[int, ...]:
    """Before which layers a model may be cut: those behind which no layer reads the cache of one before."""
    first_read = [
        number if layer.cache_layer is None else layer.cache_layer for number, layer in enumerate(spec.layers)
    ]
    return tuple(place for place in range(1, spec.n_layers) if all(read >= place for read in first_read[place:]))


def layer_ranges(spec: ModelSpec, parts: Sequence[float], layer_bytes: Sequence[int]) -> tuple[range, ...]:
    """The layers of each rank, in order, as near to its part of all bytes as borders of layers allow.

    layer_bytes: of each layer. Raises InvalidParameter where there are more ranks than places to cut.
    """
    places = cuts(spec)
    if len(parts) > len(places) + 1:
        raise InvalidParameter(
            f"the layers of this model can be divided between at most {counted(len(places) + 1, 'device')}, "
            f"not {len(parts)}; name fewer with -dev"
        )
    before = [sum(layer_bytes[:place]) for place in range(spec.n_layers + 1)]
    borders, wanted = [0], 0.0
    for rank, part in enumerate(parts[:-1]):
        wanted += part * before[-1]
        n_more = len(parts) - rank - 2  # cuts that later ranks still need
        usable = [place for place in places if place > borders[-1]]
        usable = usable[: len(usable) - n_more]
        borders.append(min(usable, key=lambda place: abs(before[place] - wanted)))
    return tuple(range(first, end) for first, end in zip(borders, [*borders[1:], spec.n_layers], strict=True))


def _normal(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(number / sum(numbers) for number in numbers)
