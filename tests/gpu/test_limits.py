"""What a plan may take of a real device, and the measured speeds that are kept."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vkllm.gpu.device.limits import HOST_RESERVE_BYTES, available_host_bytes, device_limits
from vkllm.gpu.device.probe import DeviceInfo, devices
from vkllm.gpu.measure import speeds as module
from vkllm.gpu.measure.speeds import measured_exchange, measured_speeds
from vkllm.model.memory.limits import Speeds, Tier

GIB = 2**30


@pytest.fixture
def info() -> DeviceInfo:
    return devices()[0]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DeviceInfo]:
    """A device that says it is a card, with a cache folder of its own."""
    from dataclasses import replace

    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path / "cache"))
    yield replace(devices()[0], type="discrete", name="A card", heaps=())


def measuring(monkeypatch: pytest.MonkeyPatch, answer: tuple[float, float] | None) -> list[tuple[str, ...]]:
    asked: list[tuple[str, ...]] = []

    def measure(*indices: str) -> tuple[float, float] | None:
        asked.append(indices)
        return answer

    monkeypatch.setattr(module, "_measure_in_child", measure)
    return asked


@pytest.mark.gpu
def test_limits_are_those_of_the_device(info: DeviceInfo) -> None:
    made = device_limits(info)
    local = max(heap.size_bytes for heap in info.heaps if heap.is_device_local)
    assert 0 < made.memory_bytes <= local
    assert made.max_buffer_bytes == min(info.max_binding_bytes, info.max_allocation_bytes)
    assert (made.kind == "cpu") == (info.type == "cpu")


def test_some_system_memory_is_always_kept() -> None:
    total = next(
        1024 * int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    assert 0 <= available_host_bytes() <= total - HOST_RESERVE_BYTES


@pytest.mark.gpu
def test_a_speed_is_measured_once_and_kept(card: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measuring(monkeypatch, (5e11, 2e10))
    for _ in range(2):
        speeds = measured_speeds(card)
        assert (speeds.local_bytes_per_s, speeds.host_bytes_per_s, speeds.is_measured) == (5e11, 2e10, True)
    assert asked == [(str(card.index),)]
    assert device_limits(card, speeds).bytes_per_s(Tier.LOCAL) == 5e11


@pytest.mark.gpu
def test_the_exchange_of_two_gpus_is_measured_once_and_kept(card: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measuring(monkeypatch, (4e-6, 2e10))
    features = card.features | {"external_memory_host"}
    pair = [replace(card, index=index, features=features) for index in (3, 5)]
    for _ in range(2):
        speed = measured_exchange(pair)
        assert (speed.latency_s, speed.bytes_per_s, speed.is_measured) == (4e-6, 2e10, True)
    assert asked == [("3", "5")]
    without = replace(pair[1], features=features - {"external_memory_host"})
    for others in ([pair[0], pair[0]], pair[:1], [pair[0], without], [pair[0], replace(pair[1], type="cpu")]):
        assert not measured_exchange(others).is_measured
    assert len(asked) == 1


@pytest.mark.gpu
def test_another_driver_is_measured_anew(card: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    asked = measuring(monkeypatch, (5e11, 2e10))
    measured_speeds(card)
    measured_speeds(replace(card, driver_version="2"))
    assert len(asked) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("kept", ["", "no JSON", "[]", '{"A card": "fast"}', '{"A card": [1]}'])
def test_a_damaged_record_is_ignored(card: DeviceInfo, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    path = module.cache_dir() / "bandwidth.json"
    path.parent.mkdir(parents=True)
    path.write_text(kept)
    measuring(monkeypatch, (5e11, 2e10))
    assert measured_speeds(card).local_bytes_per_s == 5e11
    assert list(json.loads(path.read_text()).values()) == [[5e11, 2e10]]


@pytest.mark.gpu
def test_where_measuring_fails_a_speed_is_assumed(card: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, None)
    speeds = measured_speeds(card)
    assert speeds == replace(Speeds(), layer_s=speeds.layer_s)  # a chain's layers take less
    assert not (module.cache_dir() / "bandwidth.json").exists()


@pytest.mark.gpu
def test_a_driver_on_the_cpu_is_not_measured(info: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    if info.type != "cpu":
        pytest.skip("needs a driver on the CPU")
    asked = measuring(monkeypatch, (5e11, 2e10))
    assert not measured_speeds(info).is_measured and asked == []


@pytest.mark.gpu
def test_the_measurement_in_a_process_of_its_own_is_two_numbers(info: DeviceInfo) -> None:
    measured = module._measure_in_child(str(info.index))
    assert measured is not None and all(1e8 < bytes_per_s < 1e14 for bytes_per_s in measured)


def test_a_crash_while_measuring_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return real([sys.executable, "-c", "import os; os.abort()"], **options)

    real = subprocess.run
    monkeypatch.setattr(module.subprocess, "run", crash)
    assert module._measure_in_child("0") is None
