"""What a plan may take of a real device: DeviceInfo and the system's memory -> DeviceLimits.

`python -m vkllm.gpu.limits INDEX` measures how fast a device reads its own and system memory, in bytes a second;
`measured_speeds` has it run in a process of its own, once a device and driver, because a driver may crash. Knows no
model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from vkllm.gpu.probe import DeviceInfo, DeviceType
from vkllm.gpu.tuning import NVIDIA
from vkllm.model.limits import (
    CHAINED_LAYER_S,
    DeviceKind,
    DeviceLimits,
    HeapLimits,
    Speeds,
    assumed_speeds,
    limits_of_heaps,
)
from vkllm.resources import cache_dir

HOST_RESERVE_BYTES = 2 * 2**30
"""System memory that no plan takes: 1.5 GiB may be in use while a model is loaded, and the rest of the system lives."""

UNKNOWN_HOST_BYTES = 4 * 2**30
"""System memory that a plan may take where the system does not say what is free."""

MEASURE_TIMEOUT_S = 60

_KINDS: dict[DeviceType, DeviceKind] = {"integrated": "unified", "cpu": "cpu"}


def device_limits(info: DeviceInfo, speeds: Speeds | None = None) -> DeviceLimits:
    """What a plan may take of a device now. speeds: those assumed for its kind by default."""
    kind = _KINDS.get(info.type, "discrete")
    return limits_of_heaps(
        kind,
        [HeapLimits(heap.size_bytes, heap.budget_bytes, heap.is_device_local) for heap in info.heaps],
        max_binding_bytes=info.max_binding_bytes,
        max_allocation_bytes=info.max_allocation_bytes,
        host_bytes=available_host_bytes(),
        speeds=speeds or _assumed(info),
    )


def available_host_bytes() -> int:
    """System memory that a plan may take now."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return UNKNOWN_HOST_BYTES
    return max(1024 * kibibytes - HOST_RESERVE_BYTES, 0)


def measured_speeds(info: DeviceInfo) -> Speeds:
    """How fast a device reads its memory: measured before, or now, which takes seconds; assumed where that fails.

    A driver on the CPU is bound by arithmetic, so its speed is assumed too.
    """
    speeds = _assumed(info)
    if info.type == "cpu":
        return speeds
    path = cache_dir() / "bandwidth.json"
    key = f"{info.name} ({info.device_id:#x}), {info.driver_name} {info.driver_version}"
    known = _known(path)
    if key not in known:
        measured = _measure_in_child(info.index)
        if measured is None:
            return speeds
        known[key] = measured
        _keep(path, known)
    local, host = known[key]
    return replace(speeds, local_bytes_per_s=local, host_bytes_per_s=host, is_measured=True)


def _assumed(info: DeviceInfo) -> Speeds:
    speeds = assumed_speeds(_KINDS.get(info.type, "discrete"), os.cpu_count() or 1)
    return replace(speeds, layer_s=CHAINED_LAYER_S) if info.vendor_id == NVIDIA else speeds


def _known(path: Path) -> dict[str, tuple[float, float]]:
    """What was measured before, of own and system memory; nothing if the file is missing or damaged."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: (float(value[0]), float(value[1])) for key, value in known.items() if _are_speeds(value)}


def _are_speeds(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int | float) and n > 0 for n in value)


def _keep(path: Path, known: dict[str, tuple[float, float]]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known, indent=2))
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)  # it is measured again the next time


def _measure_in_child(index: int) -> tuple[float, float] | None:
    command = [sys.executable, "-m", "vkllm.gpu.limits", str(index)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MEASURE_TIMEOUT_S, check=True)
        local, host = done.stdout.split()[-2:]
        return float(local), float(host)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def main(arguments: list[str]) -> None:
    """Prints how many bytes a second the device of an index reads of its own and of system memory."""
    from vkllm.gpu.bandwidth import read_bandwidth
    from vkllm.gpu.device import Device

    device = Device(arguments[0])
    try:
        limits = device_limits(device.info)
        local = read_bandwidth(device, limits.memory_bytes)
        print(local, read_bandwidth(device, limits.spill_bytes, "host") if limits.spill_bytes else local)
    finally:
        device.close()


if __name__ == "__main__":
    main(sys.argv[1:])
