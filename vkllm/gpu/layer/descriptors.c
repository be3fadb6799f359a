/* Descriptors: failures are remembered, what they leave behind is kept from the driver, and what Kompute forgets is
 * freed.
 *
 * An Algorithm of Kompute makes a descriptor pool, a set layout, sets, a shader module, a pipeline layout and a
 * pipeline, in this order. All but the pipeline it makes without looking at the result; if the pipeline fails it
 * throws and forgets the rest, so the layer remembers the rest until the pipeline is made. */
#include "layer.h"

static THREAD_LOCAL Unfinished unfinished;

Unfinished *unfinished_algorithm(void) { return &unfinished; }

void unfinished_destroy(VkDevice device) {
  Unfinished left = unfinished;
  unfinished = (Unfinished){0};
  hook_DestroyPipelineLayout(device, left.layout, NULL);
  hook_DestroyShaderModule(device, left.module, NULL);
  hook_DestroyDescriptorSetLayout(device, left.set_layout, NULL);
  hook_DestroyDescriptorPool(device, left.pool, NULL);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreateDescriptorPool(VkDevice device, const VkDescriptorPoolCreateInfo *info,
                                                         const VkAllocationCallbacks *alloc, VkDescriptorPool *out) {
  Device *d = device_of(device);
  VkResult result = injected(d, INJECT_DESCRIPTOR_POOL);
  if (!result) result = d->next.CreateDescriptorPool(device, info, alloc, out);
  if (result) *out = VK_NULL_HANDLE;
  unfinished = (Unfinished){.pool = *out};
  return result ? fail(d, "create_descriptor_pool", result) : object_made(d);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyDescriptorPool(VkDevice device, VkDescriptorPool pool,
                                                      const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!pool || !settle(d)) return;
  d->next.DestroyDescriptorPool(device, pool, alloc);
  object_gone(d);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_AllocateDescriptorSets(VkDevice device, const VkDescriptorSetAllocateInfo *info,
                                                           VkDescriptorSet *out) {
  Device *d = device_of(device);
  VkResult result = VK_ERROR_OUT_OF_POOL_MEMORY;
  int sound = info->descriptorPool != VK_NULL_HANDLE;
  for (uint32_t i = 0; i < info->descriptorSetCount; i++) sound &= info->pSetLayouts[i] != VK_NULL_HANDLE;
  if (sound) result = injected(d, INJECT_DESCRIPTOR_SETS);
  if (sound && !result) result = d->next.AllocateDescriptorSets(device, info, out);
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
