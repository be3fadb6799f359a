#!/usr/bin/env bash
# lavapipe (Mesa 22.3.6) takes OpMemoryBarrier at Workgroup or Device scope, which orders memory and waits for nobody,
# for a barrier that the whole workgroup waits at. Where one subgroup has more rounds of a loop with such a fence than
# the others, it is left behind there once they have ended, and nothing that follows is run: no hang and no error. At
# Subgroup scope, and at QueueFamily scope under the Vulkan memory model, that does not happen. Here the first subgroup
# has three rounds and the others one; the word of each invocation should become 300 and its rounds, and is the round
# that it is in until then. Exits 1 if that has changed, 2 if it cannot be tried here (it needs Debian 12). Seen, as the
# words of the first subgroup and of the others:
#
#   llvmpipe Mesa 22.3.6 (LLVM 15.0.6)
#   no fence: expected [303, 301], computed [303, 301]
#   Subgroup: expected [303, 301], computed [303, 301]
#   Workgroup: expected [303, 301], computed [3, 301]
#   Device: expected [303, 301], computed [3, 301]
#   Workgroup, memory model: expected [303, 301], computed [3, 301]
#   Device, memory model: expected [303, 301], computed [3, 301]
#   QueueFamily, memory model: expected [303, 301], computed [303, 301]
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

cat >fences.comp <<'GLSL'
#version 450
#ifdef MEMORY_MODEL
#pragma use_vulkan_memory_model
#endif
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
layout(local_size_x = 64) in;
layout(binding = 0) buffer Results { uint results[64]; };
layout(push_constant) uniform Rounds { uint first, others; };
void main() {
  uint rounds = gl_SubgroupID == 0 ? first : others;
  for (uint i = 0; i < rounds; i++) {
    results[gl_LocalInvocationIndex] = i + 1;
#ifdef SCOPE
    memoryBarrier(SCOPE, gl_StorageSemanticsBuffer, gl_SemanticsAcquireRelease); // OpMemoryBarrier
#endif
  }
  results[gl_LocalInvocationIndex] += 300;
}
GLSL
compile() { glslc --target-env=vulkan1.2 fences.comp "$@"; }
compile -o "no fence.spv"
for scope in Subgroup Workgroup Device; do compile -DSCOPE=gl_Scope$scope -o "$scope.spv"; done
for scope in Workgroup Device QueueFamily; do
  compile -DMEMORY_MODEL -DSCOPE=gl_Scope$scope -o "$scope, memory model.spv"
done

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
subgroups = vk.VkPhysicalDeviceSubgroupProperties(pNext=driver)
properties = vk.VkPhysicalDeviceProperties2(pNext=subgroups)
vk.vkGetPhysicalDeviceProperties2(gpu, properties)
print(vk.ffi.string(driver.driverName).decode(), vk.ffi.string(driver.driverInfo).decode())
queues = [vk.VkDeviceQueueCreateInfo(queueFamilyIndex=0, pQueuePriorities=[1.0])]
memory_model = vk.VkPhysicalDeviceVulkanMemoryModelFeatures(vulkanMemoryModel=1, vulkanMemoryModelDeviceScope=1)
device = vk.vkCreateDevice(gpu, vk.VkDeviceCreateInfo(pNext=memory_model, pQueueCreateInfos=queues), None)
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


n_first = subgroups.subgroupSize
right, cut_short = [303, 301], [3, 301]
is_as_seen = True
for name, wanted in (
    ("no fence", right),
    ("Subgroup", right),
    ("Workgroup", cut_short),
    ("Device", cut_short),
    ("Workgroup, memory model", cut_short),
    ("Device, memory model", cut_short),
    ("QueueFamily, memory model", right),
):
    results = computed(Path(f"{name}.spv").read_bytes(), (3, 1), 64)
    first, others = sorted(set(results[:n_first])), sorted(set(results[n_first:]))
    print(f"{name}: expected {right}, computed", first + others)
    is_as_seen &= first + others == wanted
print("as seen before" if is_as_seen else "the behaviour has changed")
sys.exit(0 if is_as_seen else 1)
PYTHON
