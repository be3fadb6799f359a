"""Several devices in one process: each keeps to itself, and host memory that they share is the same for all."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from vkllm.errors import DeviceError, DeviceLost, DeviceTimeout, OutOfDeviceMemory, UnsupportedDevice
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.device.probe import MemoryLimits
from vkllm.gpu.device.shared_memory import SharedHostMemory
from vkllm.gpu.layer import INJECTIONS, Layer
from vkllm.gpu.program.kernels import KERNELS
from vkllm.model.memory.exchange_memory import PAGE_BYTES

pytestmark = pytest.mark.gpu
LOST, TIMEOUT, INVALID_HANDLE = -4, 2, -1000072003
MIB = 2**20


@pytest.fixture
def pair(device: Device) -> Iterator[tuple[Device, Device]]:
    """One physical device, opened twice."""
    opened = Device(str(device.info.index)), Device(str(device.info.index))
    yield opened
    for kind in INJECTIONS:
        Layer.activate().inject(kind, 0)
    for one in opened:
        one.close()


def importing(device: Device) -> None:
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")


def copy(device: Device, source: Buffer, target: Buffer, n_words: int, target_word: int, source_word: int) -> int:
    """Submits a copy; returns the ticket."""
    push = (n_words, target_word, source_word)
    dispatch = device.dispatch(KERNELS["copy_words"], (source, target), constants=(64,), groups=(4, 1), push=push)
    return device.submit(device.record([dispatch]))


def test_what_one_device_writes_into_shared_memory_the_others_and_the_cpu_read(pair: tuple[Device, Device]) -> None:
    importing(pair[0])
    memory = SharedHostMemory(100_000)
    assert (memory.address % PAGE_BYTES, memory.n_bytes, len(memory.words)) == (0, 131_072, 32_768)
    assert not memory.words.any()
    shared = [device.shared_buffer(memory) for device in pair]
    drawn = np.random.default_rng(1).integers(0, 2**32, (2, 1000), dtype=np.uint32)
    source, target = pair[0].buffer(1000, tier="host"), pair[1].buffer(1000, is_host=True)
    assert source.words is not None and target.words is not None
    source.words[:] = drawn[0]
    pair[0].wait(copy(pair[0], source, shared[0], 1000, 31_768, 0))  # up to the last word
    np.testing.assert_array_equal(memory.words[-1000:], drawn[0])
    pair[1].wait(copy(pair[1], shared[1], target, 1000, 0, 31_768))
    np.testing.assert_array_equal(target.words, drawn[0])
    memory.words[:1000] = drawn[1]
    pair[1].wait(copy(pair[1], shared[1], target, 1000, 0, 0))
    np.testing.assert_array_equal(target.words, drawn[1])


def test_shared_memory_counts_against_limits_and_outlives_whatever_uses_it(device: Device) -> None:
    importing(device)
    opened = Device(str(device.info.index), limits=MemoryLimits(128 * MIB, 128 * MIB))
    gc.collect()
    before = opened.memory()
    memory = SharedHostMemory(24 * MIB)
    shared = opened.shared_buffer(memory)
    heap, was = opened.memory()[shared.placement.heap], before[shared.placement.heap]
    assert heap.used_bytes - was.used_bytes == heap.allocated_bytes - was.allocated_bytes == 24 * MIB
    with pytest.raises(OutOfDeviceMemory, match="import"):
        opened.shared_buffer(SharedHostMemory(128 * MIB))
    words = memory.words
    words[:] = 7
    target = opened.buffer(1000, is_host=True)
    ticket = copy(opened, shared, target, 1000, 0, len(words) - 1000)
    del memory, shared, words
    gc.collect()  # the device has it still
    opened.wait(ticket)
    assert target.words is not None and (target.words == 7).all()
    opened.close()


def test_shared_memory_that_a_device_cannot_bind_is_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    importing(device)
    memory = SharedHostMemory(2 * PAGE_BYTES)
    monkeypatch.setattr(device, "info", replace(device.info, max_binding_bytes=PAGE_BYTES))
    with pytest.raises(OutOfDeviceMemory, match=r"131,072 bytes of memory that devices share .* \(65,536 bytes\)"):
        device.shared_buffer(memory)


def test_a_driver_that_imports_no_memory_is_named_with_what_to_do(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing(device)
    monkeypatch.setenv("VKLLM_LAYER_HIDE_FEATURES", "external_memory_host")
    opened = Device(str(device.info.index))
    monkeypatch.undo()
    with pytest.raises(UnsupportedDevice) as caught:
        opened.shared_buffer(SharedHostMemory(1))
    opened.close()
    said = str(caught.value)
    assert device.info.name in said and device.info.driver_name in said
    assert "lacks VK_EXT_external_memory_host" in said and "-sm layer" in said


@pytest.mark.parametrize("kind", ["import", "allocate_block", "create_buffer", "bind"])
def test_memory_that_the_driver_refuses_is_a_typed_error_and_leaves_nothing(
    pair: tuple[Device, Device], kind: str
) -> None:
    importing(pair[0])
    layer, memory = Layer.activate(), SharedHostMemory(1)
    first = pair[0].shared_buffer(memory)
    before = layer.statistics(pair[1].layer_id).objects, pair[1].memory()
    layer.inject(kind, 1, INVALID_HANDLE)
    with pytest.raises(UnsupportedDevice, match="VK_ERROR_INVALID_EXTERNAL_HANDLE"):
        pair[1].shared_buffer(memory)
    assert (layer.statistics(pair[1].layer_id).objects, pair[1].memory()) == before
    again = pair[1].shared_buffer(memory)
    assert first.words is not None and again.words is not None
    again.words[5] = 9
    assert first.words[5] == 9


def test_faults_stay_with_the_device_that_was_meant(pair: tuple[Device, Device]) -> None:
    layer = Layer.activate()
    host = [device.buffer(64, is_host=True) for device in pair]
    other = [device.buffer(64, is_host=True) for device in pair]
    layer.inject("submit", 1, LOST, pair[1].layer_id)
    pair[0].wait(copy(pair[0], host[0], other[0], 64, 0, 0))
    with pytest.raises(DeviceLost):
        pair[1].wait(copy(pair[1], host[1], other[1], 64, 0, 0))
    pair[0].check()
    pair[0].wait(copy(pair[0], host[0], other[0], 64, 0, 0))
    pair[0].timeout_s = 0.05
    layer.inject("hang", 1, TIMEOUT, pair[0].layer_id)
    with pytest.raises(DeviceTimeout):
        pair[0].wait(copy(pair[0], host[0], other[0], 64, 0, 0))


def test_asynchronous_is_each_device_by_itself(pair: tuple[Device, Device]) -> None:
    """A submit on a device that is not asynchronous is done when it returns."""
    layer = Layer.activate()
    layer.asynchronous(pair[0].layer_id, False)
    kernel = KERNELS["read_bandwidth"]
    submitting, waiting = [], []
    for device in pair:
        source, sums = device.buffer(4 * MIB), device.buffer(1024)
        dispatch = device.dispatch(kernel, (source, sums), constants=(128,), groups=(8, 1), push=(MIB,))
        recording = device.record([dispatch] * 6)
        device.wait(device.submit(recording))
        tries = []
        for _ in range(9):
            started = time.perf_counter()
            ticket = device.submit(recording)
            submitted = time.perf_counter()
            device.wait(ticket)
            tries.append((submitted - started, time.perf_counter() - submitted))
        submitting.append(median(took_s for took_s, _ in tries))
        waiting.append(median(took_s for _, took_s in tries))
    assert waiting[0] < submitting[0] and submitting[1] < waiting[1]


def test_devices_that_threads_open_at_once_are_each_their_own(device: Device) -> None:
    opened: list[Device] = []
    barrier = threading.Barrier(4)

    def open_one() -> None:
        barrier.wait()
        opened.append(Device(str(device.info.index)))

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    layer = Layer.activate()
    assert len({one.layer_id for one in opened}) == 4
    for number, one in enumerate(opened):
        kept = [one.buffer(64, is_host=True) for _ in range(number)]
        assert layer.statistics(one.layer_id).allocations == min(number, 1) and len(kept) == number
    for one in opened:
        one.close()


def test_a_device_that_is_not_the_one_asked_for_is_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer.activate()
    assert layer.gpu_uuid(device.layer_id) == device.info.uuid
    before = layer.abandoned()
    monkeypatch.setattr(layer, "gpu_uuid", lambda number: bytes(range(16)))
    with pytest.raises(DeviceError, match=f"opened another device than .*index {device.info.index}"):
        Device(str(device.info.index))
    assert layer.abandoned() == before
