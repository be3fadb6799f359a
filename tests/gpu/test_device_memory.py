"""A device's memory: tiers, limits, what is told of it, and that all of it comes back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vkllm.errors import DeviceError, InvalidParameter, OutOfDeviceMemory
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.device.probe import MemoryLimits, devices
from vkllm.gpu.layer import Layer
from vkllm.gpu.layer.memory import TIERS, LayerTier
from vkllm.gpu.program.kernels import KERNELS

pytestmark = pytest.mark.gpu
MIB = 2**20


def copy(device: Device, source: Buffer, target: Buffer, n_words: int) -> None:
    kernel = KERNELS["copy_words"]
    device.run([device.dispatch(kernel, (source, target), constants=(64,), groups=(16, 1), push=(n_words, 0, 0))])


@pytest.fixture
def small(device: Device) -> Iterator[Device]:
    """A second device, of 128 MiB and 64 MiB of host memory where that is a heap of its own."""
    opened = Device(str(device.info.index), limits=MemoryLimits(128 * MIB, 64 * MIB))
    yield opened
    opened.close()


def test_new_memory_holds_no_numbers_here(device: Device) -> None:
    """Also where earlier buffers were: so a kernel that reads what nothing was written to fails in every run."""
    for _ in range(2):
        buffer = device.buffer(1000, tier="readback")
        assert buffer.words is not None and (buffer.words == 0xFFFFFFFF).all()
        buffer.words[:] = 0
        del buffer


@pytest.mark.parametrize("tier", TIERS)
def test_what_is_written_in_any_tier_comes_back_from_any_other(device: Device, tier: LayerTier) -> None:
    drawn = np.random.default_rng(1).integers(0, 2**32, 5000, dtype=np.uint32)
    source, middle = device.buffer(5000, tier="host"), device.buffer(5000, tier=tier)
    target = device.buffer(5000, tier="readback")
    assert source.words is not None and target.words is not None
    assert (middle.words is None) == (tier == "local")
    source.words[:] = drawn
    copy(device, source, middle, 5000)
    copy(device, middle, target, 5000)
    np.testing.assert_array_equal(target.words, drawn)
    heap = device.info.heaps[middle.placement.heap]
    assert heap.is_device_local or tier in ("host", "readback")
    assert middle.placement.is_device_local or tier in ("host", "readback")


def test_a_host_buffer_begins_as_zeros_even_where_another_was(device: Device) -> None:
    first = device.buffer(1000, is_host=True)
    assert first.words is not None and first.placement.n_bytes >= 4000
    first.words[:] = 7
    del first
    gc.collect()
    again = device.buffer(1000, is_host=True)
    assert again.words is not None and not again.words.any()


def test_words_outlive_their_buffer(device: Device) -> None:
    words = device.buffer(1000, is_host=True).words
    gc.collect()
    others = [device.buffer(1000, is_host=True) for _ in range(10)]
    assert words is not None
    words[:] = 5
    assert all(other.words is not None and not other.words.any() for other in others)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory in /proc")
def test_a_local_buffer_costs_no_host_memory_in_the_process(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VKLLM_LAYER_FILL_MEMORY")
    if device.info.type == "cpu" and device.info.heaps[0].size_bytes < 512 * MIB:
        pytest.skip("the device has no room")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    kept = [device.buffer(16 * MIB) for _ in range(4)]  # 256 MiB; lavapipe's memory is not touched before use
    assert resident() - before < 32 * MIB
    assert all(buffer.words is None for buffer in kept)


def test_memory_tells_what_buffers_take_and_give_back(device: Device) -> None:
    gc.collect()
    before = device.memory()
    assert [heap.size_bytes for heap in before] == [heap.size_bytes for heap in device.info.heaps]
    assert all((heap.budget_bytes is None) == ("memory_budget" not in device.info.features) for heap in before)
    kept = device.buffer(20 * MIB)
    heap, was = device.memory()[kept.placement.heap], before[kept.placement.heap]
    assert heap.used_bytes - was.used_bytes == kept.placement.n_bytes == 80 * MIB
    assert heap.allocated_bytes - was.allocated_bytes == 80 * MIB
    assert was.room_bytes - heap.room_bytes >= 79 * MIB
    del kept
    gc.collect()
    assert [heap.used_bytes for heap in device.memory()] == [heap.used_bytes for heap in before]


def test_a_limited_device_is_a_smaller_device(small: Device) -> None:
    assert all(heap.size_bytes <= (128 if heap.is_device_local else 64) * MIB for heap in small.info.heaps)
    assert [heap.size_bytes for heap in small.memory()] == [heap.size_bytes for heap in small.info.heaps]
    kept = [small.buffer(12 * MIB) for _ in range(2)]
    with pytest.raises(OutOfDeviceMemory) as caught:
        small.buffer(12 * MIB)
    message = str(caught.value)
    assert "no local memory for a buffer of 50,331,648 bytes" in message
    assert f"of {128 * MIB:,}" in message and small.info.name in message
    kept.pop()
    gc.collect()
    kept.append(small.buffer(12 * MIB))  # and it goes on


def test_limits_come_from_the_environment_or_the_caller(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VKLLM_VRAM_LIMIT", "1.5 GiB")
    monkeypatch.setenv("VKLLM_RAM_LIMIT", "500mb")
    assert MemoryLimits.from_environment() == MemoryLimits(3 * 2**29, 500 * MIB)
    for heap in devices()[device.info.index].heaps:
        assert heap.size_bytes <= (3 * 2**29 if heap.is_device_local else 500 * MIB)
    free = devices(MemoryLimits())[device.info.index]
    assert [heap.size_bytes for heap in free.heaps] == [heap.size_bytes for heap in device.info.heaps]
    monkeypatch.setenv("VKLLM_RAM_LIMIT", "16 bananas")
    with pytest.raises(InvalidParameter, match=r"VKLLM_RAM_LIMIT takes a size such as 16GiB.*'16 bananas'"):
        devices()


def test_a_buffer_larger_than_the_device_binds_or_allocates_is_refused(device: Device) -> None:
    largest = min(device.info.max_binding_bytes, device.info.max_allocation_bytes) // 4
    with pytest.raises(OutOfDeviceMemory, match="larger than the device can bind"):
        device.buffer(largest + 1)
    if largest * 4 < device.memory()[0].room_bytes:
        kept = device.buffer(largest)
        assert kept.placement.n_bytes >= 4 * largest


def test_twenty_devices_leave_nothing_behind(device: Device) -> None:
    """Open files stand for drivers: NVIDIA's bore no more than about 15 loads in a process."""
    layer = Layer.activate()
    gc.collect()
    before, abandoned = device.memory(), layer.abandoned()
    for number in range(20):
        opened = Device(str(device.info.index))
        kept = [opened.buffer(MIB), opened.buffer(1000, is_host=True), opened.buffer(1000, tier="host")]
        assert kept[1].words is not None and kept[2].words is not None
        kept[2].words[:] = number
        copy(opened, kept[2], kept[1], 1000)
        assert (kept[1].words == number).all()
        opened.close()
        with pytest.raises(DeviceError, match="no Vulkan device"):
            opened.memory()
        del kept, opened
    gc.collect()
    now = device.memory()
    assert layer.abandoned() == abandoned
    for heap, was in zip(now, before, strict=True):
        assert (heap.used_bytes, heap.allocated_bytes) == (was.used_bytes, was.allocated_bytes)
        if heap.driver_usage_bytes is not None and was.driver_usage_bytes is not None:
            assert heap.driver_usage_bytes <= was.driver_usage_bytes + 4 * MIB  # the driver's own caches
