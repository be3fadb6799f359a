"""Scenarios that run in a process of their own.

    python tests/gpu/layer/layer_scenarios.py SCENARIO

A process of its own is needed where the environment decides: under the validation layer, with hidden features, or with
the loader led astray. Each scenario prints what it saw as one line of JSON; the validation layer prints between.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from bare_kompute import SHADERS, Gpu, chain_result, chain_step, long_job

from vkllm.errors import DeviceError, DeviceLost, DeviceTimeout, OutOfDeviceMemory
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.shared_memory import SharedHostMemory
from vkllm.gpu.layer import Layer
from vkllm.gpu.layer.memory import TIERS
from vkllm.gpu.program.kernels import KERNELS


def chain_with_copies(layer: Layer) -> bool:
    """Copies in, 40 dispatches, a copy between tensors, a dispatch on the copy, copies out; twice, in one sequence."""
    gpu = Gpu(layer)
    start = np.arange(1024, dtype=np.uint32)
    tensors = [gpu.tensor(start if i == 0 else np.zeros_like(start), "device") for i in range(4)]
    a, b, c, d = tensors
    forth, back = gpu.algorithm("chain", [a, b], 16, n_push=1), gpu.algorithm("chain", [b, a], 16, n_push=1)
    last = gpu.algorithm("chain", [c, d], 16, n_push=1)
    sequence = gpu.manager.sequence()
    sequence.record(gpu.kp.OpTensorSyncDevice([a]))
    expected = start
    for _ in range(2):
        for step in range(40):
            sequence.record(gpu.dispatch(back if step % 2 else forth, step))
        sequence.record(gpu.kp.OpTensorCopy([a, c]))
        sequence.record(gpu.dispatch(last, 7))
        sequence.record(gpu.kp.OpTensorSyncLocal([d]))
        expected = chain_result(expected, 40)
    gpu.run(sequence)
    right = bool(np.array_equal(d.data(), chain_step(expected, 7)))
    sequence.eval(gpu.dispatch(last, 8))  # records the command buffer again
    gpu.layer.wait(gpu.device, gpu.layer.ticket(gpu.device), 60)
    gpu.run(sequence.record(gpu.kp.OpTensorSyncLocal([d])))
    right &= bool(np.array_equal(d.data(), chain_step(expected, 8)))
    gpu.close()
    return right


def everything(layer: Layer) -> dict[str, Any]:
    """All that the layer does to calls, on one device after another."""
    cache = Path(os.environ["VKLLM_TEST_FOLDER"])
    layer.set_pipeline_cache(cache)
    right = chain_with_copies(layer)
    gpu = Gpu(layer)
    halves = gpu.tensor(np.zeros(32, np.uint32))
    sizes = gpu.tensor(np.zeros(128, np.uint32))
    layer.require_subgroup_size(8)
    algorithms = [gpu.algorithm("half", [halves], 1), gpu.algorithm("subgroup", [sizes], 1)]
    layer.require_subgroup_size(0)
    algorithms += [gpu.algorithm("half", [halves], 1) for _ in range(3)]
    sequence = gpu.manager.sequence()
    for number, algorithm in enumerate(algorithms):
        if number in (1, 3):
            layer.independent()
        sequence.record(gpu.dispatch(algorithm))
    for _ in range(3):
        sequence.eval()
    layer.wait(gpu.device, layer.ticket(gpu.device), 60)
    right &= bool(np.array_equal(halves.data().view(np.float16), 2 * np.arange(64, dtype=np.float16)))
    _destroy_what_is_in_flight(gpu)
    right &= _memory_of_all_tiers(gpu)
    features = {"enabled": sorted(layer.features(gpu.device)), "reported": sorted(layer.reported(gpu.device))}
    layer.inject("allocate", 1, -2)
    try:
        gpu.tensor(np.zeros(64, np.uint32))
        right = False
    except RuntimeError:
        right &= _raised(layer, gpu.device) is OutOfDeviceMemory
    gpu.close()
    return {"right": right, **features}


def _memory_of_all_tiers(gpu: Gpu) -> bool:
    """Buffers of every tier and of many sizes, in and out of blocks; a block that is refused."""
    kept = []
    for number in range(60):
        gpu.layer.place_next(TIERS[number % len(TIERS)])
        kept.append(gpu.tensor(np.zeros(1 + 4999 * number, np.uint32), "storage"))
        if number % 3 == 2:
            kept.pop(number // 3).destroy()
    gpu.layer.inject("allocate_block", 1, -2)
    kept.append(gpu.tensor(np.zeros(4 << 20, np.uint32)))  # more than is free in a block
    was_refused = gpu.layer.injection_pending("allocate_block") == 0
    sequence, tensors, _algorithms = gpu.chain(np.arange(64, dtype=np.uint32), 2)
    gpu.run(sequence)
    right = bool(np.array_equal(tensors[0].data(), chain_result(np.arange(64, dtype=np.uint32), 2)))
    return was_refused and right


def _destroy_what_is_in_flight(gpu: Gpu) -> None:
    """Takes away each kind of thing that a submit uses, without waiting for the submit first."""
    for kind in ("tensor", "algorithm", "sequence", "recording"):
        sequence, tensors, algorithms = gpu.chain(np.zeros(64, np.uint32), 1)
        algorithms[1].destroy()  # was not used; the pipeline that both shared is now the other's alone
        sequence.eval()
        if kind == "recording":
            sequence.clear()
            gpu.run(sequence.record(gpu.dispatch(algorithms[0], 1)))
        else:
            {"tensor": tensors[0], "algorithm": algorithms[0], "sequence": sequence}[kind].destroy()


def half(layer: Layer) -> dict[str, Any]:
    """A shader with 16-bit floats, whatever the device was opened with."""
    gpu = Gpu(layer)
    halves = gpu.tensor(np.zeros(32, np.uint32))
    gpu.run(gpu.manager.sequence().record(gpu.dispatch(gpu.algorithm("half", [halves], 1))))
    seen = {"enabled": sorted(layer.features(gpu.device)), "reported": sorted(layer.reported(gpu.device))}
    gpu.close()
    return seen


def amd_subgroup_sizes(layer: Layer) -> dict[str, Any]:
    """The subgroup sizes that RADV compiles a shader for, by the size required. Its null device has no memory, so
    Kompute can make no buffer on it; pipelines are made here by hand, as Kompute makes them."""
    import vulkan as vk

    instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(), None)
    gpu = vk.vkEnumeratePhysicalDevices(instance)[0]
    queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=0, queueCount=1, pQueuePriorities=[1.0])
    telling = vk.VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR(pipelineExecutableInfo=vk.VK_TRUE)
    extensions = ["VK_KHR_pipeline_executable_properties"]
    info = vk.VkDeviceCreateInfo(pNext=telling, pQueueCreateInfos=[queue], ppEnabledExtensionNames=extensions)
    device = vk.vkCreateDevice(gpu, info, None)
    code = (SHADERS / "subgroup.spv").read_bytes()
    module = vk.vkCreateShaderModule(device, vk.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code), None)
    binding = vk.VkDescriptorSetLayoutBinding(
        binding=0, descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, descriptorCount=1, stageFlags=0x20
    )
    sets = vk.vkCreateDescriptorSetLayout(device, vk.VkDescriptorSetLayoutCreateInfo(pBindings=[binding]), None)
    layout = vk.vkCreatePipelineLayout(device, vk.VkPipelineLayoutCreateInfo(pSetLayouts=[sets]), None)
    stage = vk.VkPipelineShaderStageCreateInfo(stage=0x20, module=module, pName="main")
    properties_of = vk.vkGetDeviceProcAddr(device, "vkGetPipelineExecutablePropertiesKHR")
    compiled = {}
    for n in (0, 16, 32, 64, 128):
        layer.require_subgroup_size(n)
        wanted = vk.VkComputePipelineCreateInfo(stage=stage, layout=layout, basePipelineIndex=-1)
        pipeline = vk.vkCreateComputePipelines(device, None, 1, [wanted], None)[0]
        compiled[n] = [p.subgroupSize for p in properties_of(device, vk.VkPipelineInfoKHR(pipeline=pipeline))]
    statistics = layer.statistics(layer.open_device())
    return {"compiled": compiled, "made": statistics.pipelines_created, "ignored": statistics.subgroup_sizes_ignored}


def forgetful(layer: Layer) -> dict[str, Any]:
    """A device that is destroyed before its buffer and its memory."""
    import vulkan as vk

    instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(), None)
    queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=0, queueCount=1, pQueuePriorities=[1.0])
    info = vk.VkDeviceCreateInfo(pQueueCreateInfos=[queue])
    device = vk.vkCreateDevice(vk.vkEnumeratePhysicalDevices(instance)[0], info, None)
    wanted = vk.VkBufferCreateInfo(size=4096, usage=vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT)
    buffer = vk.vkCreateBuffer(device, wanted, None)
    required = vk.vkGetBufferMemoryRequirements(device, buffer)
    asked = vk.VkMemoryAllocateInfo(allocationSize=required.size, memoryTypeIndex=0)
    vk.vkBindBufferMemory(device, buffer, vk.vkAllocateMemory(device, asked, None), 0)
    vk.vkDestroyDevice(device, None)
    vk.vkDestroyInstance(instance, None)
    return {"abandoned": layer.abandoned()}


def unordered(layer: Layer) -> dict[str, Any]:
    """A dispatch that needs the one before it, called independent: a hazard."""
    gpu = Gpu(layer)
    sequence, _tensors, algorithms = gpu.chain(np.arange(1024, dtype=np.uint32), 1)
    layer.independent()
    gpu.run(sequence.record(gpu.dispatch(algorithms[1], 1)))
    gpu.close()
    return {}


def passed_by(layer: Layer) -> dict[str, Any]:
    """The variable that names the layer is gone when Kompute makes its instance."""
    del os.environ["VK_INSTANCE_LAYERS"]
    try:
        Gpu(layer)
    except DeviceError as error:
        return {"error": str(error)}
    return {}


def opened(layer: Layer) -> dict[str, Any]:
    gpu = Gpu(layer)
    features = sorted(layer.features(gpu.device))
    gpu.close()
    return {"device": gpu.device, "features": features, "layers": os.environ["VK_INSTANCE_LAYERS"]}


def no_device(layer: Layer) -> dict[str, Any]:
    """vkCreateDevice fails; Kompute goes on with a null device, and the loader ends the process."""
    layer.inject("create_device", 1, -3)
    Gpu(layer)
    return {}


def refused(layer: Layer) -> dict[str, Any]:
    """vkCreateDevice fails before Kompute gets there; the next device works."""
    raised = []
    for result in (-3, -2):
        layer.inject("create_device", 1, result)
        try:
            Device("0")
        except DeviceError as error:
            raised.append([type(error).__name__, str(error)])
    device = Device("0")
    n_words = device.buffer(64).n_words
    device.close()
    return {"raised": raised, "n_words": n_words}


def lost(layer: Layer) -> dict[str, Any]:
    """Without asynchronous mode, eval() of a submit that failed comes back instead of waiting for ever."""
    gpu = Gpu(layer)
    layer.asynchronous(gpu.device, False)
    sequence, *_kept = gpu.chain(np.arange(64, dtype=np.uint32), 3)
    layer.inject("submit", 1, -4)
    sequence.eval()
    raised = _raised(layer, gpu.device)
    gpu.close()
    return {"is_device_lost": raised is DeviceLost}


def hanging(layer: Layer) -> dict[str, Any]:
    """Everything is destroyed under a submit for which the layer's patience is over; it goes on."""
    gpu = Gpu(layer)
    sequence, counter = long_job(gpu, 1.5)  # so long that it still runs then on a busy machine
    count = ctypes.c_uint32.from_address(layer.placement().address)
    before = count.value
    gpu.run(sequence)
    until = 2 * count.value - before
    sequence.eval()
    layer.inject("settle", 1, 2)
    counter.destroy()
    try:
        sequence.clear()
        sequence.record(gpu.kp.OpTensorSyncDevice([gpu.tensor(np.zeros(64, np.uint32))]))
        was_recorded_again = True
    except RuntimeError:
        was_recorded_again = False
    raised = _raised(layer, gpu.device)
    sequence.destroy()
    gpu.close()
    was_running = count.value < until
    while count.value < until:
        time.sleep(0.01)
    return {
        "was_recorded_again": was_recorded_again,
        "is_timeout": raised is DeviceTimeout,
        "was_running": was_running,
    }


def left(layer: Layer) -> dict[str, Any]:
    """A device that hangs when it is closed keeps what it was given; the next one works and goes as usual."""
    seen: dict[str, Any] = {"is_memory_there": []}
    for kind in ("hangs", "works"):
        device = Device("0")
        buffers = [device.buffer(64) for _ in range(2)]
        if "external_memory_host" in device.info.features:
            memory = SharedHostMemory(256)
            buffers[1] = device.shared_buffer(memory)
            is_there = weakref.ref(memory)
            del memory
        device.run([device.dispatch(KERNELS["copy_words"], buffers, constants=(64,), push=(64, 0, 0))])
        if kind == "hangs":
            layer.inject("settle", 1, 2)
        device.close()
        number = device.layer_id
        del device, buffers
        gc.collect()
        if "is_there" in locals():
            seen["is_memory_there"].append(is_there() is not None)
        try:
            seen[kind] = layer.statistics(number).objects
        except DeviceError:
            seen[kind] = None
    return seen


def _raised(layer: Layer, device: int) -> type[Exception] | None:
    try:
        layer.check(device)
    except DeviceError as error:
        return type(error)
    return None


if __name__ == "__main__":
    active = Layer.activate()
    scenarios = {
        f.__name__: f
        for f in (
            everything,
            half,
            amd_subgroup_sizes,
            unordered,
            passed_by,
            opened,
            no_device,
            refused,
            forgetful,
            lost,
            hanging,
            left,
        )
    }
    print("\n" + json.dumps(scenarios[sys.argv[1]](active)))
