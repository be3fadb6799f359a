"""Which devices a model runs on, and how much of each it may take: what a user asks for, of the devices there are.

Knows no open device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vkllm.errors import InvalidParameter, counted
from vkllm.gpu.device.limits import device_limits
from vkllm.gpu.device.probe import PREFERENCE, DeviceInfo, choose_device
from vkllm.model.memory.limits import Speeds
from vkllm.model.memory.options import PlanOptions
from vkllm.model.memory.split_plan import Member


@dataclass(frozen=True)
class ChosenDevices:
    """infos: the devices, of which one may be there more than once. options: with a share for each of them, or none."""

    infos: tuple[DeviceInfo, ...]
    options: PlanOptions


def chosen_devices(known: Sequence[DeviceInfo], options: PlanOptions) -> ChosenDevices:
    """The devices that a model is to run on.

    Without names, the best ones: as many as there are shards or shares; with a split_mode of "layer" or "tensor", all
    that are of the best type; else one. Raises NoDevice, InvalidParameter for options that do not go together.
    """
    infos = [choose_device(known, name) for name in options.devices] or _best_first(known, options)
    shares = options.tensor_split  # checked with the devices by `plan_splits`
    n_wanted = options.num_shards or (len(shares) if not options.devices else 0) or None
    if n_wanted is None and not options.devices and options.split_mode not in ("layer", "tensor"):
        n_wanted = 1
    if options.split_mode == "none" or (n_wanted == 1 and options.main_gpu):
        return _one(infos, options)
    if n_wanted is not None and n_wanted > len(infos):
        what = counted(len(infos), "device")
        there = f"{what} {'is' if len(infos) == 1 else 'are'} {'named' if options.devices else 'there'}"
        asked = counted(n_wanted, "shard") if options.num_shards else f"{n_wanted} shares of tensor_split (-ts)"
        raise InvalidParameter(
            f"{asked} need as many devices, and {there} "
            f"({', '.join(f'{info.name}, index {info.index}' for info in infos)}); name devices with -dev, also one "
            "more than once"
        )
    infos = infos[:n_wanted]
    if shares and len(shares) != len(infos):
        raise InvalidParameter(
            f"tensor_split (-ts) has {counted(len(shares), 'share')} for {counted(len(infos), 'device')}; give one for "
            "each device"
        )
    if options.main_gpu >= len(infos):
        raise _no_main(infos, options)
    used = [info for info, share in zip(infos, shares, strict=True) if share] if shares else infos
    return ChosenDevices(tuple(used), replace(options, tensor_split=tuple(share for share in shares if share)))


def _best_first(known: Sequence[DeviceInfo], options: PlanOptions) -> list[DeviceInfo]:
    choose_device(known, None)  # there must be one
    infos = sorted(known, key=lambda info: PREFERENCE.index(info.type))
    is_counted = options.num_shards is not None or options.tensor_split or options.split_mode is None
    return [info for info in infos if is_counted or info.type == infos[0].type]


def _one(infos: Sequence[DeviceInfo], options: PlanOptions) -> ChosenDevices:
    if (options.num_shards or 1) > 1:
        raise InvalidParameter(f"split_mode none (-sm none) is one device, not {options.num_shards} shards")
    if options.main_gpu >= len(infos):
        raise _no_main(infos, options)
    return ChosenDevices((infos[options.main_gpu],), replace(options, tensor_split=()))


def _no_main(infos: Sequence[DeviceInfo], options: PlanOptions) -> InvalidParameter:
    return InvalidParameter(
        f"main_gpu (-mg) is {options.main_gpu}, and the model has {counted(len(infos), 'device')}, counted from 0"
    )


def members(infos: Sequence[DeviceInfo], speeds: Mapping[int, Speeds | None]) -> list[Member]:
    """The devices as plans take them. speeds: by index of the device; None is what is assumed of its kind."""
    limits = {info.index: device_limits(info, speeds[info.index]) for info in infos}
    return [
        Member(info.name, limits[info.index], str(info.index), "external_memory_host" in info.features)
        for info in infos
    ]


def joined_names(names: Sequence[str]) -> str:
    """Names of devices, equal ones once with their number: "2 x llvmpipe"."""
    counts = {name: names.count(name) for name in names}
    return " + ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())
