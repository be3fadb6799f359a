"""A failure at every Vulkan call in turn: each ends in a typed error, and the next device works."""

from __future__ import annotations

import numpy as np
import pytest

from vkllm.errors import DeviceError, DeviceLost, DeviceTimeout, OutOfDeviceMemory
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.shared_memory import SharedHostMemory
from vkllm.gpu.layer import INJECTIONS, Layer
from vkllm.gpu.program.kernels import KERNELS

pytestmark = pytest.mark.gpu
OUT_OF_HOST_MEMORY, OUT_OF_DEVICE_MEMORY, INITIALIZATION_FAILED, LOST, TIMEOUT = -1, -2, -3, -4, 2
IN_USE = [kind for kind in INJECTIONS if kind not in ("create_device", "allocate_block", "settle")]
RESULTS = {
    "wait": [LOST],
    "hang": [TIMEOUT],
    "submit": [LOST, OUT_OF_DEVICE_MEMORY, OUT_OF_HOST_MEMORY],
}


def use_a_device(index: int) -> None:
    """Opens a device, makes buffers, of shared memory too where it can be imported, computes and reads the result."""
    device = Device(str(index), timeout_s=0.5)
    try:
        source, middle, target = device.buffer(64, tier="host"), device.buffer(64), device.buffer(64, is_host=True)
        assert source.words is not None and target.words is not None
        source.words[:] = np.arange(64)
        if "external_memory_host" in device.info.features:
            middle = device.shared_buffer(SharedHostMemory(256))
        steps = [
            device.dispatch(KERNELS["copy_words"], pair, constants=(64,), groups=(1, 1), push=(64, 0, 0))
            for pair in ((source, middle), (middle, target))
        ]
        recording = device.record(steps)
        for _ in range(2):
            device.wait(device.submit(recording))
        np.testing.assert_array_equal(target.words, np.arange(64))
    finally:
        device.close()


@pytest.mark.parametrize("kind", IN_USE)
def test_a_failure_at_each_call_in_turn_is_a_typed_error_and_the_next_device_works(device: Device, kind: str) -> None:
    layer = Layer.activate()
    n_failures = 0
    for result in RESULTS.get(kind, [OUT_OF_DEVICE_MEMORY, OUT_OF_HOST_MEMORY, INITIALIZATION_FAILED]):
        expected = {TIMEOUT: DeviceTimeout, LOST: DeviceLost, INITIALIZATION_FAILED: DeviceError}
        abandoned = layer.abandoned()
        for nth in range(1, 100):
            layer.inject(kind, nth, result)
            try:
                use_a_device(device.info.index)
            except DeviceError as error:
                assert isinstance(error, expected.get(result, OutOfDeviceMemory)), (nth, result, error)
                assert layer.injection_pending(kind) == 0
                n_failures += 1
            else:
                assert layer.injection_pending(kind) > 0, "a failure was not noticed"
                break
            finally:
                layer.inject(kind, 0)
            use_a_device(device.info.index)
        assert layer.abandoned() == abandoned  # nothing that a failure left half made
    assert n_failures > 0


def test_a_block_that_the_driver_refuses_is_made_smaller_and_nobody_notices(device: Device) -> None:
    layer = Layer.activate()
    layer.inject("allocate_block", 1, OUT_OF_DEVICE_MEMORY)
    use_a_device(device.info.index)
    assert layer.injection_pending("allocate_block") == 0


@pytest.mark.parametrize("kind", ["allocate", "map", "create_buffer", "create_pipeline", "create_descriptor_pool"])
def test_a_device_goes_on_after_a_failure_and_keeps_nothing_of_it(device: Device, kind: str) -> None:
    layer = Layer.activate()
    opened = Device(str(device.info.index))
    try:
        kept = [opened.buffer(64) for _ in range(2)]
        objects = layer.statistics(opened.layer_id).objects
        used = [heap.used_bytes for heap in opened.memory()]
        for _ in range(3):
            layer.inject(kind, 1, OUT_OF_DEVICE_MEMORY)
            with pytest.raises(OutOfDeviceMemory, match=kind):
                buffers = (opened.buffer(64, tier="host"), kept[1])
                opened.dispatch(KERNELS["copy_words"], buffers, constants=(64,), groups=(1, 1), push=(64, 0, 0))
            buffers = (kept[0], kept[1])
        assert layer.statistics(opened.layer_id).objects == objects
        assert [heap.used_bytes for heap in opened.memory()] == used
        opened.run([opened.dispatch(KERNELS["copy_words"], buffers, constants=(64,), groups=(1, 1), push=(64, 0, 0))])
    finally:
        layer.inject(kind, 0)
        opened.close()
