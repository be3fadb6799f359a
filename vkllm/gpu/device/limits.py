"""What a plan may use of a real device: DeviceInfo and the system's memory -> DeviceLimits. Knows no model.

`python -m vkllm.gpu.device.limits [DEVICE]` prints them as JSON; `limits_from_child` runs that in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from vkllm.gpu.device.probe import NVIDIA_DRIVER, DeviceInfo, DeviceType, choose_device, devices
from vkllm.model.memory.limits import (
    CHAINED_LAYER_S,
    DeviceKind,
    DeviceLimits,
    HeapLimits,
    Speeds,
    assumed_speeds,
    limits_of_heaps,
)
from vkllm.resources import child_environment, child_python

HOST_RESERVE_BYTES = 2 * 2**30
"""System memory that no plan uses: loading a model may take 1.5 GiB, and other programs need some too."""

UNKNOWN_HOST_BYTES = 4 * 2**30
"""System memory that a plan may take where the system does not say what is free."""

CHILD_TIMEOUT_S = 30
"""A driver that does not answer by then is not waited for."""

_KINDS: dict[DeviceType, DeviceKind] = {"integrated": "unified", "cpu": "cpu"}


def device_limits(info: DeviceInfo, speeds: Speeds | None = None) -> DeviceLimits:
    """How much memory of a device a plan may use now. speeds: by default those assumed for its kind."""
    kind = _KINDS.get(info.type, "discrete")
    return limits_of_heaps(
        kind,
        [HeapLimits(heap.size_bytes, heap.budget_bytes, heap.is_device_local) for heap in info.heaps],
        max_binding_bytes=info.max_binding_bytes,
        max_allocation_bytes=info.max_allocation_bytes,
        host_bytes=available_host_bytes(),
        speeds=speeds or supposed_speeds(info),
    )


def limits_from_child(device: str | None) -> DeviceLimits | None:
    """`device_limits` of the device that is meant (`choose_device`); None if it cannot be found out.

    A process of its own looks for devices: that loads drivers, and one that crashes or prints must not take a chat, or
    its screen, with it.
    """
    command = child_python("vkllm.gpu.device.limits", *([] if device is None else [device]))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=True, env=child_environment()
        )
        fields = json.loads(done.stdout.splitlines()[-1])
        return DeviceLimits(**fields | {"speeds": Speeds(**fields["speeds"])})
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, KeyError, TypeError):
        return None


def available_host_bytes() -> int:
    """Bytes of system memory that a plan may use now."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return UNKNOWN_HOST_BYTES
    return max(1024 * kibibytes - HOST_RESERVE_BYTES, 0)


def supposed_speeds(info: DeviceInfo) -> Speeds:
    """What is assumed of a device that was not measured."""
    speeds = assumed_speeds(_KINDS.get(info.type, "discrete"), os.cpu_count() or 1)
    return replace(speeds, layer_s=CHAINED_LAYER_S) if info.driver_id == NVIDIA_DRIVER else speeds


def main(arguments: list[str]) -> None:
    """Prints the limits of the device that is meant."""
    print(json.dumps(asdict(device_limits(choose_device(devices(), arguments[0] if arguments else None)))))


if __name__ == "__main__":
    main(sys.argv[1:])
