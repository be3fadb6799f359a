/* Buffers, memory and descriptors: failures are remembered, and what they leave behind is kept from the driver.
 *
 * Kompute ignores the results of vkCreateBuffer, vkAllocateMemory and the descriptor functions and goes on with
 * null handles. Its wrapper does throw when vkBindBufferMemory or vkMapMemory fail, or when a buffer fits no memory
 * type, so these fail here for null handles: Python gets an exception, and the failure says why. */
#include "layer.h"

VKAPI_ATTR VkResult VKAPI_CALL hook_CreateBuffer(VkDevice device, const VkBufferCreateInfo *info,
                                                 const VkAllocationCallbacks *alloc, VkBuffer *out) {
  Device *d = device_of(device);
  VkResult result = injected(INJECT_CREATE_BUFFER);
  if (!result) result = d->next.CreateBuffer(device, info, alloc, out);
  if (!result) return result;
  *out = VK_NULL_HANDLE;
  return fail(d, "create_buffer", result);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyBuffer(VkDevice device, VkBuffer buffer, const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!buffer) return;
  settle(d);
  d->next.DestroyBuffer(device, buffer, alloc);
}

VKAPI_ATTR void VKAPI_CALL hook_GetBufferMemoryRequirements(VkDevice device, VkBuffer buffer,
                                                            VkMemoryRequirements *out) {
  if (buffer)
    device_of(device)->next.GetBufferMemoryRequirements(device, buffer, out);
  else
    *out = (VkMemoryRequirements){0, 1, 0};       /* no memory type will do */
}

VKAPI_ATTR VkResult VKAPI_CALL hook_AllocateMemory(VkDevice device, const VkMemoryAllocateInfo *info,
                                                   const VkAllocationCallbacks *alloc, VkDeviceMemory *out) {
  Device *d = device_of(device);
  VkResult result = injected(INJECT_ALLOCATE);
  if (!result) result = d->next.AllocateMemory(device, info, alloc, out);
  if (!result) return result;
  *out = VK_NULL_HANDLE;
  return fail(d, "allocate", result);
}

VKAPI_ATTR void VKAPI_CALL hook_FreeMemory(VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!memory) return;
  settle(d);
  d->next.FreeMemory(device, memory, alloc);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_BindBufferMemory(VkDevice device, VkBuffer buffer, VkDeviceMemory memory,
                                                     VkDeviceSize offset) {
  Device *d = device_of(device);
  if (buffer && memory) {
    VkResult result = d->next.BindBufferMemory(device, buffer, memory, offset);
    return result ? fail(d, "bind", result) : result;
  }
  /* Kompute throws now and forgets the buffer. */
  if (buffer) d->next.DestroyBuffer(device, buffer, NULL);
  return fail(d, "bind", VK_ERROR_OUT_OF_DEVICE_MEMORY);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_MapMemory(VkDevice device, VkDeviceMemory memory, VkDeviceSize offset,
                                              VkDeviceSize size, VkMemoryMapFlags flags, void **out) {
  Device *d = device_of(device);
  VkResult result = memory ? d->next.MapMemory(device, memory, offset, size, flags, out) : VK_ERROR_MEMORY_MAP_FAILED;
  return result ? fail(d, "map", result) : result;
}

VKAPI_ATTR void VKAPI_CALL hook_UnmapMemory(VkDevice device, VkDeviceMemory memory) {
  if (memory) device_of(device)->next.UnmapMemory(device, memory);
}

/* Kompute maps only host-coherent memory, which needs no flush, and its range is not a multiple of
 * nonCoherentAtomSize, which would be invalid use: nothing is left to do. */
VKAPI_ATTR VkResult VKAPI_CALL hook_FlushMappedMemoryRanges(VkDevice device, uint32_t n,
                                                            const VkMappedMemoryRange *ranges) {
  (void)device, (void)n, (void)ranges;
  return VK_SUCCESS;
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreateDescriptorPool(VkDevice device, const VkDescriptorPoolCreateInfo *info,
                                                         const VkAllocationCallbacks *alloc, VkDescriptorPool *out) {
  Device *d = device_of(device);
  VkResult result = d->next.CreateDescriptorPool(device, info, alloc, out);
  if (!result) return result;
  *out = VK_NULL_HANDLE;
  return fail(d, "create_descriptor_pool", result);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyDescriptorPool(VkDevice device, VkDescriptorPool pool,
                                                      const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!pool) return;
  settle(d);
  d->next.DestroyDescriptorPool(device, pool, alloc);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_AllocateDescriptorSets(VkDevice device, const VkDescriptorSetAllocateInfo *info,
                                                           VkDescriptorSet *out) {
  Device *d = device_of(device);
  VkResult result = VK_ERROR_OUT_OF_POOL_MEMORY;
  int sound = info->descriptorPool != VK_NULL_HANDLE;
  for (uint32_t i = 0; i < info->descriptorSetCount; i++) sound &= info->pSetLayouts[i] != VK_NULL_HANDLE;
  if (sound) result = d->next.AllocateDescriptorSets(device, info, out);
  if (!result) return result;
  for (uint32_t i = 0; i < info->descriptorSetCount; i++) out[i] = VK_NULL_HANDLE;
  return fail(d, "allocate_descriptor_sets", result);
}

VKAPI_ATTR void VKAPI_CALL hook_UpdateDescriptorSets(VkDevice device, uint32_t n, const VkWriteDescriptorSet *writes,
                                                     uint32_t n_copies, const VkCopyDescriptorSet *copies) {
  for (uint32_t i = 0; i < n; i++)                   /* the failure that left a null set is already kept */
    if (!writes[i].dstSet || (writes[i].pBufferInfo && !writes[i].pBufferInfo->buffer)) return;
  device_of(device)->next.UpdateDescriptorSets(device, n, writes, n_copies, copies);
}
