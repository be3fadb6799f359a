"""What kernels need from a device: subgroups of a known size, and the limits that no kernel can do without.

Kernels compute memory addresses from subgroup ids and sizes. Unless told otherwise, a driver may compile a kernel for
another size than it reports (Intel's reports 32 and compiles for 8, 16 or 32) and leave subgroups partly empty. So
kernels request full subgroups of one size; where a device cannot guarantee these, the `_plain` modules run, which use
no subgroups. Pure: knows devices by their descriptions only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vkllm.errors import UnsupportedDevice
from vkllm.gpu.device.probe import DeviceInfo

PLAIN_LANES: Final = 8
"""Invocations that compute a sum together in the `_plain` modules; `SUBGROUP_SIZE` in shaders/lib/subgroups.glsl."""

SIZE_FEATURES: Final = frozenset({"subgroup_size_control", "compute_full_subgroups"})
"""Features that a device needs to guarantee full subgroups of a requested size."""

OPERATIONS: Final = frozenset({"basic", "arithmetic", "shuffle"})
"""Subgroup operations that kernels use; a test compares them with the registry."""

SMALLEST, LARGEST = 8, 64
"""Subgroup sizes that kernels work with: eight lanes share a block of activations, and workgroups have 64 or more."""

INTEL: Final = 0x8086
PREFERRED_SIZES: Final = {INTEL: 16}
"""By vendor, where it is not the reported size: with 32 lanes, Intel's GPUs have half as many registers per lane."""

LEAST_INVOCATIONS, LEAST_CPU_INVOCATIONS = 256, 128
LEAST_SHARED_BYTES = 16384


def required_subgroup_size(info: DeviceInfo) -> int | None:
    """The subgroup size that kernels request, a power of two; None where the device cannot guarantee a suitable one."""
    smallest, largest = max(info.min_subgroup_size, SMALLEST), min(info.max_subgroup_size, LARGEST)
    if not (info.features >= SIZE_FEATURES and info.subgroup_operations >= OPERATIONS) or smallest > largest:
        return None
    if not info.max_workgroup_subgroups:  # AMD's GPUs before RDNA: there is only one size, which needs no request
        is_fixed = info.min_subgroup_size == info.max_subgroup_size == info.subgroup_size
        return info.subgroup_size if is_fixed and info.subgroup_size & (info.subgroup_size - 1) == 0 else None
    size = min(max(PREFERRED_SIZES.get(info.vendor_id, info.subgroup_size), smallest), largest)
    has_room = info.max_workgroup_subgroups * size >= max(_least_invocations(info), 4 * size)
    return size if has_room and size & (size - 1) == 0 else None


def is_plain(info: DeviceInfo) -> bool:
    """Whether a device runs the `_plain` modules."""
    return required_subgroup_size(info) is None


def without_subgroups(info: DeviceInfo) -> DeviceInfo:
    """The same device, running the `_plain` modules; matrices are multiplied by subgroups, so it has none."""
    return replace(info, features=info.features - SIZE_FEATURES, subgroup_size=PLAIN_LANES, matrix_shape=None)


def prepared(info: DeviceInfo) -> DeviceInfo:
    """The device as its kernels use it: with the subgroup size that they request, or without subgroups."""
    size = required_subgroup_size(info)
    return without_subgroups(info) if size is None else replace(info, subgroup_size=size)


def check_requirements(info: DeviceInfo) -> None:
    """Raises UnsupportedDevice if a device lacks something that every kernel needs."""
    invocations = _least_invocations(info)
    lacking = []
    if info.api_version < (1, 1):
        lacking.append(f"Vulkan 1.1 (it has {info.api_version[0]}.{info.api_version[1]})")
    if info.max_workgroup_invocations < invocations:
        lacking.append(f"workgroups of {invocations} invocations (it allows {info.max_workgroup_invocations})")
    if info.max_shared_bytes < LEAST_SHARED_BYTES:
        lacking.append(f"{LEAST_SHARED_BYTES:,} bytes of shared memory (it has {info.max_shared_bytes:,})")
    if lacking:
        raise UnsupportedDevice(
            f"{described(info)} cannot run vkllm's kernels, which need {' and '.join(lacking)}; "
            "update the driver or choose another device (`vkllm devices` lists them)"
        )


def _least_invocations(info: DeviceInfo) -> int:
    return LEAST_CPU_INVOCATIONS if info.type == "cpu" else LEAST_INVOCATIONS


def described(info: DeviceInfo) -> str:
    """A device and its driver, for messages."""
    return f"{info.name} (driver {info.driver_name} {info.driver_version})"
