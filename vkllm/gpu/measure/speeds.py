"""How fast a device reads its own and system memory, for plans: measured once a device and driver, then kept.

`python -m vkllm.gpu.measure.speeds INDEX` measures, in bytes a second, and with several indices how fast these devices
hand each other numbers; `measured_speeds` and `measured_exchange` run that in a process of its own, because a driver
may crash. Knows no model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.limits import device_limits, supposed_speeds
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.measure.bandwidth import read_bandwidth
from vkllm.gpu.measure.exchange import exchange_times
from vkllm.model.memory.limits import Speeds
from vkllm.model.memory.step_time import ExchangeSpeed
from vkllm.resources import cache_dir, child_environment, child_python

MEASURE_TIMEOUT_S = 60


def measured_speeds(info: DeviceInfo) -> Speeds:
    """How fast a device reads its memory: measured before, or now, which takes seconds; assumed where that fails.

    A driver on the CPU is bound by arithmetic, so its speed is assumed too.
    """
    speeds = supposed_speeds(info)
    if info.type == "cpu":
        return speeds
    if (measured := _measured(_name(info), str(info.index))) is None:
        return speeds
    local, host = measured
    return replace(speeds, local_bytes_per_s=local, host_bytes_per_s=host, is_measured=True)


def measured_exchange(infos: Sequence[DeviceInfo]) -> ExchangeSpeed:
    """How fast devices hand each other numbers: measured before, or now; assumed where that fails, and where they are
    drivers on the CPU or one device more than once."""
    indices = [str(info.index) for info in infos]
    are_gpus = all(info.type != "cpu" and "external_memory_host" in info.features for info in infos)
    if len(indices) < 2 or len(set(indices)) < len(indices) or not are_gpus:
        return ExchangeSpeed()
    if (measured := _measured(f"between {', '.join(map(_name, infos))}", *indices)) is None:
        return ExchangeSpeed()
    latency_s, bytes_per_s = measured
    return ExchangeSpeed(latency_s, bytes_per_s, len(infos) * bytes_per_s, is_measured=True)


def _name(info: DeviceInfo) -> str:
    return f"{info.name} ({info.device_id:#x}), {info.driver_name} {info.driver_version}"


def _measured(key: str, *indices: str) -> tuple[float, float] | None:
    """What a process of its own measured, now or before."""
    path = cache_dir() / "bandwidth.json"
    known = _known(path)
    if key not in known:
        measured = _measure_in_child(*indices)
        if measured is None:
            return None
        known[key] = measured
        _keep(path, known)
    return known[key]


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


def _measure_in_child(*indices: str) -> tuple[float, float] | None:
    command, env = child_python("vkllm.gpu.measure.speeds", *indices), child_environment()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MEASURE_TIMEOUT_S, check=True, env=env)
        local, host = done.stdout.split()[-2:]
        return float(local), float(host)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def main(arguments: list[str]) -> None:
    """Prints how many bytes a second the device of an index reads of its own and of system memory; of several indices,
    the seconds of an exchange between these devices, and at how many bytes a second they hand over more."""
    with ExitStack() as opened:
        devices = [Device(index) for index in arguments]
        for device in devices:
            opened.callback(device.close)
        if len(devices) > 1:
            speed = exchange_times(devices).speed
            print(max(speed.latency_s, 1e-9), speed.bytes_per_s)
            return
        limits = device_limits(devices[0].info)
        local = read_bandwidth(devices[0], limits.memory_bytes)
        print(local, read_bandwidth(devices[0], limits.spill_bytes, "host") if limits.spill_bytes else local)


if __name__ == "__main__":
    main(sys.argv[1:])
