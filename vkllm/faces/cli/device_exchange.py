"""`vkllm devices --exchange`: how fast GPUs hand each other numbers, as a table or as JSON."""

from __future__ import annotations

from typing import Any

from vkllm.errors import NoDevice, UnsupportedDevice
from vkllm.faces.terminal import print_json
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.probe import DeviceInfo, choose_device
from vkllm.gpu.measure.exchange import ExchangeTimes, exchange_times, groups_of


def print_exchanges(found: list[DeviceInfo], wanted: str | None, *, as_json: bool) -> None:
    """Measures each pair of devices, then all of them. wanted: indices or names; None takes all GPUs.

    Raises NoDevice if there are fewer than two, DeviceError. A device that is named twice is opened twice.
    """
    chosen = _chosen(found, wanted)
    indices = [info.index for info in chosen]
    devices: list[Device] = []
    entries: list[dict[str, Any]] = []
    try:
        for index in indices:
            devices.append(Device(str(index)))
        if not as_json:
            print("\nexchange through system memory: of a row for each token, and of 512 rows of a prompt")
            print(f"  {'devices':<16}{'4096 numbers':>14}{'8192 numbers':>14}{'prompts':>12}")
        for group in groups_of(len(devices)):
            entry = _measured([devices[place] for place in group], [indices[place] for place in group])
            entries.append(entry)
            if not as_json:
                print(_line(entry), flush=True)
    finally:
        for device in devices:
            device.close()
    if as_json:
        print_json(entries)


def advice(found: list[DeviceInfo]) -> list[str]:
    """What to say below a list of devices, for those who have several GPUs."""
    gpus = [info for info in found if info.type != "cpu"]
    if len(gpus) < 2:
        return []
    unable = [info for info in gpus if "external_memory_host" not in info.features]
    return [
        "`vkllm devices --exchange` measures how fast these GPUs hand each other numbers",
        *(
            f"{info.name} (index {info.index}) cannot share system memory with other GPUs: its driver lacks "
            "VK_EXT_external_memory_host; update it, or split models by layers (`-sm layer`)"
            for info in unable
        ),
    ]


def _chosen(found: list[DeviceInfo], wanted: str | None) -> list[DeviceInfo]:
    if wanted is None:
        chosen = [info for info in found if info.type != "cpu"]
    else:
        chosen = [choose_device(found, name.strip()) for name in wanted.split(",")]
    if len(chosen) < 2:
        there = "one" if chosen else "none"
        raise NoDevice(f"--exchange measures between GPUs, and there is {there}; name two devices, such as -dev 0,1")
    return chosen


def _measured(devices: list[Device], indices: list[int]) -> dict[str, Any]:
    try:
        times = exchange_times(devices)
    except UnsupportedDevice as error:
        return {"devices": indices, "error": str(error)}
    return {"devices": indices, "row_us": _row_us(times), "bytes_per_s": times.bytes_per_s}


def _row_us(times: ExchangeTimes) -> dict[str, float]:
    return {str(columns): 1e6 * seconds for columns, seconds in times.row_s.items()}


def _line(entry: dict[str, Any]) -> str:
    names = ", ".join(map(str, entry["devices"]))
    if "error" in entry:
        return f"  {names:<16}{entry['error']}"
    rows = "".join(f"{us:11.1f} us" for us in entry["row_us"].values())
    return f"  {names:<16}{rows}{entry['bytes_per_s'] / 1e9:7.2f} GB/s"
