"""Failures that Kompute does not see: they come out as typed errors, and nothing crashes or hangs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from bare_kompute import Gpu, chain_result, run_scenario, start_scenario

from vkllm.errors import DeviceError, DeviceLost, OutOfDeviceMemory
from vkllm.gpu.layer import Layer

pytestmark = pytest.mark.gpu
OUT_OF_HOST_MEMORY, OUT_OF_DEVICE_MEMORY, INITIALIZATION_FAILED, LOST = -1, -2, -3, -4


@pytest.mark.parametrize("call", ["allocate", "create_buffer"])
@pytest.mark.parametrize("result", [OUT_OF_DEVICE_MEMORY, OUT_OF_HOST_MEMORY])
@pytest.mark.parametrize("kind", ["host", "storage", "device"])
def test_a_failed_allocation_is_out_of_device_memory_and_the_device_goes_on(
    gpu: Gpu, call: str, result: int, kind: str
) -> None:
    gpu.layer.inject(call, 1, result)
    with pytest.raises(RuntimeError):
        gpu.tensor(np.zeros(64, np.uint32), kind)
    with pytest.raises(OutOfDeviceMemory, match=call):
        gpu.layer.check(gpu.device)
    gpu.layer.check(gpu.device)  # told once
    sequence, tensors, _ = gpu.chain(np.arange(64, dtype=np.uint32), 4)
    gpu.run(sequence)
    np.testing.assert_array_equal(tensors[0].data(), chain_result(np.arange(64, dtype=np.uint32), 4))


def test_the_nth_allocation_fails_and_the_first_failure_is_the_one_told(gpu: Gpu) -> None:
    gpu.layer.inject("allocate", 3, OUT_OF_DEVICE_MEMORY)
    kept = [gpu.tensor(np.zeros(64, np.uint32)) for _ in range(2)]
    with pytest.raises(RuntimeError):
        gpu.tensor(np.zeros(64, np.uint32))
    gpu.layer.inject("create_pipeline", 1, INITIALIZATION_FAILED)
    with pytest.raises(RuntimeError):
        gpu.algorithm("chain", kept, 1, n_push=1)
    with pytest.raises(OutOfDeviceMemory, match="allocate"):
        gpu.layer.check(gpu.device)


def test_a_mapping_that_fails_late_leaves_nothing_of_its_buffer(gpu: Gpu) -> None:
    kept = gpu.tensor(np.zeros(64, np.uint32))
    objects, heaps = gpu.layer.statistics(gpu.device).objects, gpu.layer.heaps(gpu.device)
    gpu.layer.inject("map", 2, -5)  # the layer maps the memory, then Kompute asks
    with pytest.raises(RuntimeError):
        gpu.tensor(np.zeros(64, np.uint32))
    with pytest.raises(DeviceError, match="map: VK_ERROR_MEMORY_MAP_FAILED"):
        gpu.layer.check(gpu.device)
    assert (gpu.layer.statistics(gpu.device).objects, gpu.layer.heaps(gpu.device)) == (objects, heaps)
    assert kept.size() == 64


def test_a_failed_pipeline_is_a_device_error(gpu: Gpu) -> None:
    tensors = [gpu.tensor(np.zeros(64, np.uint32)) for _ in range(2)]
    gpu.layer.inject("create_pipeline", 1, INITIALIZATION_FAILED)
    with pytest.raises(RuntimeError):
        gpu.algorithm("chain", tensors, 1, n_push=1)
    with pytest.raises(DeviceError, match="create_pipeline: VK_ERROR_INITIALIZATION_FAILED"):
        gpu.layer.check(gpu.device)


def test_a_device_lost_in_a_submit_ends_the_wait_at_once_and_for_good(gpu: Gpu) -> None:
    sequence, *_kept = gpu.chain(np.zeros(64, np.uint32), 3)
    gpu.run(sequence)
    gpu.layer.inject("submit", 1, LOST)
    sequence.eval()
    for _ in range(2):
        started = time.perf_counter()
        with pytest.raises(DeviceLost):
            gpu.layer.wait(gpu.device, gpu.layer.ticket(gpu.device), 60)
        assert time.perf_counter() - started < 30, "seconds, of the 60 that it may take"
    sequence.eval()
    with pytest.raises(DeviceLost, match="submit"):
        gpu.layer.check(gpu.device)


def test_a_device_lost_in_a_wait_is_device_lost(gpu: Gpu) -> None:
    sequence, *_kept = gpu.chain(np.zeros(64, np.uint32), 3)
    gpu.layer.inject("wait", 2, LOST)
    gpu.run(sequence)
    with pytest.raises(DeviceLost):
        gpu.run(sequence)


def test_a_failed_submit_fails_its_own_wait_and_not_those_before_or_after(gpu: Gpu) -> None:
    sequence, *_kept = gpu.chain(np.zeros(64, np.uint32), 3)
    sequence.eval()
    before = gpu.layer.ticket(gpu.device)
    gpu.layer.inject("submit", 1, OUT_OF_DEVICE_MEMORY)
    sequence.eval()
    gpu.layer.wait(gpu.device, before, 60)
    with pytest.raises(OutOfDeviceMemory, match="submit"):
        gpu.layer.wait(gpu.device, gpu.layer.ticket(gpu.device), 60)
    gpu.run(sequence)
    gpu.layer.check(gpu.device)


def test_a_failed_submit_does_not_hang_an_eval_that_waits(layer: Layer, tmp_path: Path) -> None:
    seen, _ = run_scenario("lost", tmp_path)
    assert seen["is_device_lost"]


def test_a_device_that_cannot_be_made_is_a_typed_error_and_the_next_one_works(layer: Layer, tmp_path: Path) -> None:
    seen, _ = run_scenario("refused", tmp_path)
    assert [name for name, _ in seen["raised"]] == ["DeviceError", "OutOfDeviceMemory"]
    assert "cannot be opened (VkErrorInitializationFailed)" in seen["raised"][0][1]
    assert seen["n_words"] == 64


def test_a_device_that_bare_kompute_cannot_make_ends_the_process_with_the_reason(layer: Layer, tmp_path: Path) -> None:
    done = start_scenario("no_device", tmp_path)
    assert done.returncode != 0
    assert "vkCreateDevice failed with VkResult -3" in done.stdout
