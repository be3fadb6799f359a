/* Recording: which barriers a command buffer gets.
 *
 * Kompute records a TRANSFER->COMPUTE barrier for each tensor of each dispatch, and nothing that orders a dispatch
 * after another; a copy is ordered after dispatches in one of its operations only. The layer drops those
 * barriers and puts its own before each dispatch and copy that needs one:
 *
 *   before a dispatch   COMPUTE|TRANSFER writes -> COMPUTE reads and writes
 *   before a copy       COMPUTE|TRANSFER writes -> TRANSFER reads and writes
 *   at the end          COMPUTE|TRANSFER writes -> HOST reads
 *
 * A barrier orders all earlier work of the queue. Left out is only the one before a dispatch that the program calls
 * independent; but the first dispatch of a command buffer (it comes after earlier submits) and the first after a
 * copy always get theirs. */
#include <stdlib.h>

#include "layer.h"

static THREAD_LOCAL int next_is_independent;

/* The next dispatch that this thread records touches nothing that the dispatches since the last barrier of its
 * command buffer write, and writes nothing that they read: it gets no barrier. */
EXPORT void vkllm_layer_independent(void) { next_is_independent = 1; }

Recording *recording_of(Device *d, VkCommandBuffer commands) {
  Recording *r = d->recordings;
  while (r && r->handle != commands) r = r->next;
  return r;
}

static void forget(Device *d, VkCommandPool pool, VkCommandBuffer commands) {
  for (Recording **at = &d->recordings; *at;) {
    Recording *r = *at;
    if (r->pool != pool || (commands && r->handle != commands)) {
      at = &r->next;
      continue;
    }
    *at = r->next;
    free(r);
  }
}

void commands_close(Device *d) {
  while (d->recordings) forget(d, d->recordings->pool, VK_NULL_HANDLE);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreateCommandPool(VkDevice device, const VkCommandPoolCreateInfo *info,
                                                      const VkAllocationCallbacks *alloc, VkCommandPool *out) {
  Device *d = device_of(device);
  VkCommandPoolCreateInfo resettable = *info;        /* Kompute records command buffers again without this right */
  resettable.flags |= VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT;
  VkResult result = injected(d, INJECT_COMMAND_POOL);
  if (!result) result = d->next.CreateCommandPool(device, &resettable, alloc, out);
  if (!result) return object_made(d);
  *out = VK_NULL_HANDLE;
  return fail(d, "create_command_pool", result);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyCommandPool(VkDevice device, VkCommandPool pool,
                                                   const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!pool || !settle(d)) return;
  lock(&d->lock);
  forget(d, pool, VK_NULL_HANDLE);
  unlock(&d->lock);
  d->next.DestroyCommandPool(device, pool, alloc);
  object_gone(d);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_AllocateCommandBuffers(VkDevice device, const VkCommandBufferAllocateInfo *info,
                                                           VkCommandBuffer *out) {
  Device *d = device_of(device);
  VkResult result = info->commandPool ? injected(d, INJECT_COMMAND_BUFFER) : VK_ERROR_INITIALIZATION_FAILED;
  if (!result) result = d->next.AllocateCommandBuffers(device, info, out);
  if (result) return fail(d, "allocate_command_buffers", result);
  for (uint32_t i = 0; i < info->commandBufferCount; i++) {
    Recording *r = calloc(1, sizeof *r);
    if (!r) return fail(d, "allocate_command_buffers", VK_ERROR_OUT_OF_HOST_MEMORY);
    lock(&d->lock);
    *r = (Recording){.next = d->recordings, .handle = out[i], .pool = info->commandPool};
    d->recordings = r;
    unlock(&d->lock);
  }
  return result;
}

VKAPI_ATTR void VKAPI_CALL hook_FreeCommandBuffers(VkDevice device, VkCommandPool pool, uint32_t n,
                                                   const VkCommandBuffer *commands) {
  Device *d = device_of(device);
  if (!pool || !settle(d)) return;
  lock(&d->lock);
  for (uint32_t i = 0; i < n; i++)
    if (commands[i]) forget(d, pool, commands[i]);
  unlock(&d->lock);
  d->next.FreeCommandBuffers(device, pool, n, commands);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_BeginCommandBuffer(VkCommandBuffer commands, const VkCommandBufferBeginInfo *info) {
  Device *d = device_of(commands);
  lock(&d->lock);
  Recording *r = recording_of(d, commands);
  uint64_t ticket = r ? r->ticket : 0;
  unlock(&d->lock);
  if (!settle_through(d, ticket)) return VK_TIMEOUT; /* its last submit may still run */
  lock(&d->lock);
  if (r) {
    r->compute_ordered = r->has_work = 0;
    r->ticket = 0;
  }
  unlock(&d->lock);
  VkCommandBufferBeginInfo repeatable = *info;       /* submitted again while it runs, behind itself */
  repeatable.flags |= VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT;
  VkResult result = injected(d, INJECT_BEGIN);
  if (!result) result = d->next.BeginCommandBuffer(commands, &repeatable);
  return result ? fail(d, "begin", result) : result;
}

static void order(Device *d, VkCommandBuffer commands, VkPipelineStageFlags stage, VkAccessFlags access) {
  VkMemoryBarrier writes = {VK_STRUCTURE_TYPE_MEMORY_BARRIER, NULL,
                            VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT, access};
  d->next.CmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT, stage, 0,
                             1, &writes, 0, NULL, 0, NULL);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_EndCommandBuffer(VkCommandBuffer commands) {
  Device *d = device_of(commands);
  lock(&d->lock);
  Recording *r = recording_of(d, commands);
  int needed = r && r->has_work;
  unlock(&d->lock);
  if (needed) order(d, commands, VK_PIPELINE_STAGE_HOST_BIT, VK_ACCESS_HOST_READ_BIT);
  VkResult result = injected(d, INJECT_END);
  if (!result) result = d->next.EndCommandBuffer(commands);
  return result ? fail(d, "end", result) : result;
}

VKAPI_ATTR void VKAPI_CALL hook_CmdPipelineBarrier(VkCommandBuffer commands, VkPipelineStageFlags from,
                                                   VkPipelineStageFlags to, VkDependencyFlags flags, uint32_t n_memory,
                                                   const VkMemoryBarrier *memory, uint32_t n_buffer,
                                                   const VkBufferMemoryBarrier *buffer, uint32_t n_image,
                                                   const VkImageMemoryBarrier *image) {
  Device *d = device_of(commands);
  VkPipelineStageFlags both = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
  /* Dispatches and copies order themselves, and the end of the command buffer orders the host's reads. */
  if (!(from & ~both) && !(to & ~(both | VK_PIPELINE_STAGE_HOST_BIT)) && !n_image) return;
  d->next.CmdPipelineBarrier(commands, from, to, flags, n_memory, memory, n_buffer, buffer, n_image, image);
}

VKAPI_ATTR void VKAPI_CALL hook_CmdDispatch(VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
  Device *d = device_of(commands);
  lock(&d->lock);
  Recording *r = recording_of(d, commands);
  int needed = !(next_is_independent && r && r->compute_ordered);
  next_is_independent = 0;
  if (r) r->compute_ordered = r->has_work = 1;
  d->statistics.dispatches++;
  d->statistics.barriers += needed;
  unlock(&d->lock);
  if (needed)
    order(d, commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT);
  d->next.CmdDispatch(commands, x, y, z);
}

VKAPI_ATTR void VKAPI_CALL hook_CmdCopyBuffer(VkCommandBuffer commands, VkBuffer from, VkBuffer to, uint32_t n,
                                              const VkBufferCopy *regions) {
  Device *d = device_of(commands);
  if (!from || !to) return;                          /* of a tensor whose creation failed */
  lock(&d->lock);
  Recording *r = recording_of(d, commands);
  if (r) {
    r->compute_ordered = 0;
    r->has_work = 1;
  }
  d->statistics.copies++;
  d->statistics.barriers++;
  unlock(&d->lock);
  order(d, commands, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT);
  d->next.CmdCopyBuffer(commands, from, to, n, regions);
}
