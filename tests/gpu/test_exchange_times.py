"""`vkllm devices --exchange`: what is measured between devices, and how it is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vkllm.errors import NoDevice, UnsupportedDevice
from vkllm.faces.cli import device_exchange
from vkllm.faces.cli.device_exchange import advice, print_exchanges
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.measure import exchange as measure
from vkllm.gpu.measure.exchange import ExchangeTimes, exchange_times, groups_of

pytestmark = pytest.mark.gpu
TIMES = ExchangeTimes(2, {4096: 3e-6, 8192: 4e-6}, 1e-3, 8 * 2**20)


def test_two_devices_are_timed(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")
    monkeypatch.setattr(measure, "ROW_COLUMNS", (64, 128))
    monkeypatch.setattr(measure, "CPU_WIDE", (16, 256))
    monkeypatch.setattr(measure, "N_CPU", 3)
    second = Device(str(device.info.index))
    try:
        times = exchange_times([device, second])
    finally:
        second.close()
    assert (times.n_ranks, times.wide_bytes, [*times.row_s]) == (2, 4 * 16 * 256, [64, 128])
    assert all(0 < seconds < 5 for seconds in (*times.row_s.values(), times.wide_s))


def test_plans_get_a_fixed_time_and_a_speed() -> None:
    """Each of two ranks writes its part and reads the other's: 16 MiB in 1 ms."""
    times = replace(TIMES, row_s={4096: 6e-6, 8192: 8e-6})
    speed = times.speed
    assert speed.is_measured and 0 < speed.latency_s < 6e-6
    assert speed.bytes_per_s == pytest.approx(16 * 2**20 / 1e-3)
    assert speed.sum_s(4 * 4096, 2) == pytest.approx(6e-6)
    assert speed.transfer_s(8 * 2**20, 2) == pytest.approx(1e-3)
    assert replace(times, row_s={4096: 1e-9}).speed.latency_s == 0
    assert TIMES.bytes_per_s == pytest.approx(8.388608e9)


def test_each_pair_is_measured_and_then_all() -> None:
    assert list(groups_of(2)) == [(0, 1)]
    assert list(groups_of(3)) == [(0, 1), (0, 2), (1, 2), (0, 1, 2)]


def test_exchanges_are_a_table_or_json_and_a_driver_that_cannot_is_named(
    device: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index, seen = device.info.index, []

    def measured(devices: list[Device]) -> ExchangeTimes:
        seen.append(len(devices))
        if len(devices) == 3:
            raise UnsupportedDevice("Old Card cannot share system memory")
        return TIMES

    monkeypatch.setattr(device_exchange, "exchange_times", measured)
    found = [device.info]
    print_exchanges(found, f"{index}, {index},{index}", as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert seen == [2, 2, 2, 3]
    assert lines[-2].split() == [f"{index},", f"{index}", "3.0", "us", "4.0", "us", "8.39", "GB/s"]
    assert lines[-1].split(maxsplit=3)[3] == "Old Card cannot share system memory"
    print_exchanges(found, f"{index},{index}", as_json=True)
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["devices"] == [index, index]
    assert entry["row_us"] == pytest.approx({"4096": 3.0, "8192": 4.0}) and entry["bytes_per_s"] == TIMES.bytes_per_s


@pytest.mark.parametrize(("wanted", "words"), [("0", "there is one"), ("0,Voodoo", "called 'Voodoo'")])
def test_fewer_than_two_devices_and_unknown_names_are_refused(device: Device, wanted: str, words: str) -> None:
    with pytest.raises(NoDevice, match=words):
        print_exchanges([replace(device.info, index=0)], wanted, as_json=True)


def test_those_with_several_gpus_are_told_of_the_measurement(device: Device) -> None:
    can = replace(device.info, type="discrete", name="New Card", features=frozenset({"external_memory_host"}))
    cannot = replace(can, name="Old Card", index=1, features=frozenset())
    assert advice([can]) == advice([device.info, can]) == []
    assert advice([can, can]) == ["`vkllm devices --exchange` measures how fast these GPUs hand each other numbers"]
    assert advice([can, cannot])[1].startswith("Old Card (index 1) cannot share system memory")
