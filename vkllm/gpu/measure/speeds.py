"""How fast a device reads its own and system memory, for plans: measured once a device and driver, then kept.

`python -m vkllm.gpu.measure.speeds INDEX` measures, in bytes a second; `measured_speeds` runs that in a process of its
own, because a driver may crash. Knows no model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.limits import device_limits, supposed_speeds
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.measure.bandwidth import read_bandwidth
from vkllm.model.memory.limits import Speeds
from vkllm.resources import cache_dir, child_environment, child_python

MEASURE_TIMEOUT_S = 60


def measured_speeds(info: DeviceInfo) -> Speeds:
    """How fast a device reads its memory: measured before, or now, which takes seconds; assumed where that fails.

    A driver on the CPU is bound by arithmetic, so its speed is assumed too.
    """
    speeds = supposed_speeds(info)
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
    command, env = child_python("vkllm.gpu.measure.speeds", str(index)), child_environment()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MEASURE_TIMEOUT_S, check=True, env=env)
        local, host = done.stdout.split()[-2:]
        return float(local), float(host)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def main(arguments: list[str]) -> None:
    """Prints how many bytes a second the device of an index reads of its own and of system memory."""
    device = Device(arguments[0])
    try:
        limits = device_limits(device.info)
        local = read_bandwidth(device, limits.memory_bytes)
        print(local, read_bandwidth(device, limits.spill_bytes, "host") if limits.spill_bytes else local)
    finally:
        device.close()


if __name__ == "__main__":
    main(sys.argv[1:])
