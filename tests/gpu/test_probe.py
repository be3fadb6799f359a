"""The device probe: what it reads, in Kompute's order, and how a device is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vkllm.errors import NoDevice
from vkllm.gpu.device.probe import DeviceInfo, Heap, _n_cores, choose_device, devices

CARD = DeviceInfo(
    index=1,
    name="AMD Radeon RX 6700 XT (RADV NAVI22)",
    type="discrete",
    vendor_id=0x1002,
    device_id=0x73DF,
    driver_name="radv",
    driver_version="Mesa 24.2.1",
    api_version=(1, 3, 289),
    heaps=(Heap(12 * 2**30, 11 * 2**30, True), Heap(32 * 2**30, None, False)),
    max_binding_bytes=2**32 - 1,
    max_allocation_bytes=2**32 - 4,
    max_workgroup_invocations=1024,
    max_shared_bytes=65536,
    subgroup_size=64,
    min_subgroup_size=32,
    max_subgroup_size=64,
    features=frozenset({"fp16"}),
)
LLVMPIPE = replace(CARD, index=0, name="llvmpipe (LLVM 15)", type="cpu")
APU = replace(CARD, index=2, name="AMD Custom GPU 0405", type="integrated")
SECOND_CARD = replace(CARD, index=3, name="NVIDIA GeForce RTX 4090")


def amd_cores(engines: int, arrays: int, units: int) -> SimpleNamespace:
    """As VK_AMD_shader_core_properties tells."""
    return SimpleNamespace(
        shaderEngineCount=engines, shaderArraysPerEngineCount=arrays, computeUnitsPerShaderArray=units
    )


@pytest.fixture
def found() -> list[DeviceInfo]:
    try:
        return devices()
    except NoDevice as error:
        pytest.skip(str(error))


@pytest.mark.gpu
def test_devices_are_numbered_as_kompute_numbers_them(found: list[DeviceInfo]) -> None:
    kp = pytest.importorskip("kp")
    manager = kp.Manager(0)
    listed = [device["device_name"] for device in manager.list_devices()]
    manager.destroy()
    assert [device.name for device in found] == listed
    assert [device.index for device in found] == list(range(len(found)))


@pytest.mark.gpu
def test_every_limit_keeps_the_vulkan_specifications_minimum(found: list[DeviceInfo]) -> None:
    for device in found:
        assert device.max_binding_bytes >= 2**27
        assert device.max_allocation_bytes >= 2**30
        assert device.max_workgroup_invocations >= 128
        assert device.max_shared_bytes >= 16384
        assert min(device.max_groups) >= 65535
        assert "basic" in device.subgroup_operations
        if "subgroup_size_control" in device.features and device.max_workgroup_subgroups:
            assert device.max_workgroup_subgroups * device.max_subgroup_size >= 128
        assert 1 <= device.min_subgroup_size <= device.subgroup_size <= device.max_subgroup_size <= 128
        assert any(heap.is_device_local for heap in device.heaps)
        assert all(heap.size_bytes > 0 for heap in device.heaps)
        has_budget = "memory_budget" in device.features
        assert all((heap.budget_bytes is not None) == has_budget for heap in device.heaps)
        assert (device.api_version, device.driver_name) > ((1, 0, 0), "")


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_looking_often_leaves_nothing_open(found: list[DeviceInfo]) -> None:
    devices()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert devices() == [replace(device, heaps=now.heaps) for device, now in zip(found, devices(), strict=True)]
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.gpu
def test_a_second_look_makes_no_second_instance(found: list[DeviceInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    import vulkan

    def refuse(*_: object) -> None:
        raise AssertionError("asked for again")

    for function in ("vkCreateInstance", "vkEnumeratePhysicalDevices", "vkGetPhysicalDeviceProperties2"):
        monkeypatch.setattr(vulkan, function, refuse)
    assert [device.name for device in devices()] == [device.name for device in found]


@pytest.mark.gpu
@pytest.mark.parametrize("variable", ["VK_ICD_FILENAMES", "VK_DRIVER_FILES"])
def test_no_driver_is_no_device(variable: str) -> None:
    code = (
        "from vkllm.gpu.device.probe import devices\ntry: devices()\nexcept Exception as e: print(type(e).__name__, e)"
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {variable: "/nonexistent/driver.json", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("NoDevice ")
    assert "install your GPU's driver" in done.stdout


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, None),
        ({"VkPhysicalDeviceShaderSMBuiltinsPropertiesNV": SimpleNamespace(shaderSMCount=132)}, 132),
        ({"VkPhysicalDeviceShaderCorePropertiesAMD": amd_cores(4, 2, 10)}, 80),
        ({"VkPhysicalDeviceShaderCorePropertiesAMD": amd_cores(0, 0, 0)}, None),
    ],
)
def test_cores_are_counted_where_the_driver_tells(properties: dict[str, SimpleNamespace], expected: int | None) -> None:
    assert _n_cores(properties) == expected


def test_the_most_able_type_is_the_default_and_the_first_of_equals_wins() -> None:
    assert choose_device([LLVMPIPE, CARD, APU, SECOND_CARD], None) is CARD
    assert choose_device([LLVMPIPE, APU], None) is APU
    assert choose_device([LLVMPIPE], None) is LLVMPIPE
    assert choose_device([LLVMPIPE, replace(APU, type="virtual")], None).type == "virtual"


def test_a_device_is_chosen_by_index_or_part_of_its_name() -> None:
    known = [LLVMPIPE, CARD, APU, SECOND_CARD]
    assert choose_device(known, "3") is SECOND_CARD
    assert choose_device(known, "geforce") is SECOND_CARD
    assert choose_device(known, "radeon rx") is CARD
    assert choose_device(known, "Custom GPU") is APU


@pytest.mark.parametrize("wanted", ["4", "intel", "0405 ", "-1", "²"])
def test_a_device_that_is_not_there_is_no_device_and_the_message_names_those_that_are(wanted: str) -> None:
    with pytest.raises(NoDevice, match=r"llvmpipe.*\(index 0\), .*AMD Custom GPU 0405 \(index 2\)"):
        choose_device([LLVMPIPE, CARD, APU], wanted)
    with pytest.raises(NoDevice):
        choose_device([], wanted)
