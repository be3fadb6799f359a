#!/usr/bin/env bash
# lavapipe (Mesa 22.3.6) gives an invocation 65,535 rounds for all its loops together, nested or one after the other.
# Then they end, wherever they are, and what follows runs: wrong numbers and no error. Vulkan allows no such limit, and
# no property tells of it. A loop's last look at its condition counts as a round, too. Exits 1 if that has changed, 2 if
# it cannot be tried here (it needs Debian 12). Seen, as the counts of a first loop, a second one, and two nested ones:
#
#   llvmpipe Mesa 22.3.6 (LLVM 15.0.6)
#   expected [60000, 0, 0] computed [60000, 0, 0]
#   expected [100000, 0, 0] computed [65535, 0, 0]
#   expected [40000, 40000, 0] computed [40000, 25534, 0]
#   expected [0, 0, 90000] computed [0, 0, 65100]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder" # apt's own user comes to the files, too
cd "$folder"

fail() {
  echo "$1" >&2
  exit 2 # neither seen nor refuted
}

# unpack PACKAGE=VERSION...: into root/; nothing is installed
unpack() {
  command -v apt-get >/dev/null || fail "this needs Debian 12's apt-get"
  apt-get download "$@" >apt.log 2>&1 ||
    fail "apt-get serves other versions by now, or \`apt-get update\` is needed: $(grep '^E:' apt.log | head -1)"
  for package in *.deb; do dpkg -x "$package" root; done
  rm -- *.deb
}
unpack mesa-vulkan-drivers=22.3.6-1+deb12u2 libvulkan1=1.3.239.0-1 glslc=2023.2-1 libshaderc1=2023.2-1
driver=$(find "$folder/root" -name libvulkan_lvp.so)
LD_LIBRARY_PATH=$(dirname "$driver")
export LD_LIBRARY_PATH PATH="$folder/root/usr/bin:$PATH"
missing=$(ldd "$driver" | awk '/not found/ {print $1}' | xargs)
[ -z "$missing" ] || fail "Mesa's driver needs libraries that are not installed here: $missing"
printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "%s", "api_version": "1.3.230"}}' "$driver" >lvp.json
export VK_DRIVER_FILES="$folder/lvp.json"

cat >loops.comp <<'GLSL'
#version 450
layout(local_size_x = 1) in;
layout(binding = 0) buffer Counts { uint counts[3]; };
layout(push_constant) uniform Rounds { uint first, second, outer, inner; };
void main() {
  for (uint i = 0; i < first; i++) counts[0]++;
  for (uint i = 0; i < second; i++) counts[1]++;
  for (uint i = 0; i < outer; i++)
    for (uint j = 0; j < inner; j++) counts[2]++;
}
GLSL
glslc --target-env=vulkan1.2 -o loops.spv loops.comp

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check vulkan==1.3.275.1
venv/bin/python - <<'PYTHON'
import struct
import sys
from pathlib import Path

import vulkan as vk

application = vk.VkApplicationInfo(apiVersion=vk.VK_MAKE_VERSION(1, 2, 0))
instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
gpu = vk.vkEnumeratePhysicalDevices(instance)[0]
driver = vk.VkPhysicalDeviceDriverProperties()
properties = vk.VkPhysicalDeviceProperties2(pNext=driver)
vk.vkGetPhysicalDeviceProperties2(gpu, properties)
print(vk.ffi.string(driver.driverName).decode(), vk.ffi.string(driver.driverInfo).decode())
queues = [vk.VkDeviceQueueCreateInfo(queueFamilyIndex=0, pQueuePriorities=[1.0])]
device = vk.vkCreateDevice(gpu, vk.VkDeviceCreateInfo(pQueueCreateInfos=queues), None)
queue = vk.vkGetDeviceQueue(device, 0, 0)


def computed(code, push, n_words):
    """The buffer's words, 0 before, after one workgroup of the shader."""
    size = 4 * n_words
    usage = vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT
    buffer = vk.vkCreateBuffer(device, vk.VkBufferCreateInfo(size=size, usage=usage), None)
    needs = vk.vkGetBufferMemoryRequirements(device, buffer)
    wanted = vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
    types = vk.vkGetPhysicalDeviceMemoryProperties(gpu).memoryTypes
    kind = next(i for i in range(32) if needs.memoryTypeBits >> i & 1 and types[i].propertyFlags & wanted == wanted)
    allocation = vk.VkMemoryAllocateInfo(allocationSize=needs.size, memoryTypeIndex=kind)
    memory = vk.vkAllocateMemory(device, allocation, None)
    vk.vkBindBufferMemory(device, buffer, memory, 0)
    mapped = vk.vkMapMemory(device, memory, 0, size, 0)
    mapped[:] = bytes(size)

    storage, stage = vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, vk.VK_SHADER_STAGE_COMPUTE_BIT
    binding = vk.VkDescriptorSetLayoutBinding(binding=0, descriptorType=storage, descriptorCount=1, stageFlags=stage)
    layout = vk.vkCreateDescriptorSetLayout(device, vk.VkDescriptorSetLayoutCreateInfo(pBindings=[binding]), None)
    sizes = [vk.VkDescriptorPoolSize(type=storage, descriptorCount=1)]
    pool = vk.vkCreateDescriptorPool(device, vk.VkDescriptorPoolCreateInfo(maxSets=1, pPoolSizes=sizes), None)
    sets = vk.vkAllocateDescriptorSets(
        device, vk.VkDescriptorSetAllocateInfo(descriptorPool=pool, pSetLayouts=[layout])
    )
    write = vk.VkWriteDescriptorSet(
        dstSet=sets[0], dstBinding=0, descriptorCount=1, descriptorType=storage,
        pBufferInfo=[vk.VkDescriptorBufferInfo(buffer=buffer, offset=0, range=size)],
    )
    vk.vkUpdateDescriptorSets(device, 1, [write], 0, None)

    module = vk.vkCreateShaderModule(device, vk.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code), None)
    ranges = [vk.VkPushConstantRange(stageFlags=stage, offset=0, size=4 * len(push))]
    pipeline_layout = vk.vkCreatePipelineLayout(
        device, vk.VkPipelineLayoutCreateInfo(pSetLayouts=[layout], pPushConstantRanges=ranges), None
    )
    entry = vk.VkPipelineShaderStageCreateInfo(stage=stage, module=module, pName="main")
    info = vk.VkComputePipelineCreateInfo(stage=entry, layout=pipeline_layout)
    pipeline = vk.vkCreateComputePipelines(device, vk.VK_NULL_HANDLE, 1, [info], None)[0]

    commands = vk.vkCreateCommandPool(device, vk.VkCommandPoolCreateInfo(queueFamilyIndex=0), None)
    allocation = vk.VkCommandBufferAllocateInfo(commandPool=commands, commandBufferCount=1)
    command = vk.vkAllocateCommandBuffers(device, allocation)[0]
    vk.vkBeginCommandBuffer(command, vk.VkCommandBufferBeginInfo())
    compute = vk.VK_PIPELINE_BIND_POINT_COMPUTE
    vk.vkCmdBindPipeline(command, compute, pipeline)
    vk.vkCmdBindDescriptorSets(command, compute, pipeline_layout, 0, 1, sets, 0, None)
    words = vk.ffi.new("uint32_t[]", push)
    vk.vkCmdPushConstants(command, pipeline_layout, stage, 0, 4 * len(push), words)
    vk.vkCmdDispatch(command, 1, 1, 1)
    to_host = vk.VkMemoryBarrier(
        srcAccessMask=vk.VK_ACCESS_SHADER_WRITE_BIT, dstAccessMask=vk.VK_ACCESS_HOST_READ_BIT
    )
    shader, host = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, vk.VK_PIPELINE_STAGE_HOST_BIT
    vk.vkCmdPipelineBarrier(command, shader, host, 0, 1, [to_host], 0, None, 0, None)
    vk.vkEndCommandBuffer(command)
    vk.vkQueueSubmit(queue, 1, [vk.VkSubmitInfo(pCommandBuffers=[command])], vk.VK_NULL_HANDLE)
    vk.vkQueueWaitIdle(queue)
    return list(struct.unpack(f"{n_words}I", mapped[:]))


code = Path("loops.spv").read_bytes()
seen = []
for rounds in ((60_000, 0, 0, 0), (100_000, 0, 0, 0), (40_000, 40_000, 0, 0), (0, 0, 300, 300)):
    first, second, outer, inner = rounds
    seen.append(computed(code, rounds, 3))
    print("expected", [first, second, outer * inner], "computed", seen[-1])
is_as_seen = seen == [[60_000, 0, 0], [65_535, 0, 0], [40_000, 25_534, 0], [0, 0, 65_100]]
print("as seen before" if is_as_seen else "the behaviour has changed")
sys.exit(0 if is_as_seen else 1)
PYTHON
