/* Buffers and their memory: each buffer gets a span of a block, of the tier that Python asked for, or is host memory
 * that several devices share.
 *
 * Kompute makes a buffer, asks what memory it requires, allocates that, binds it at offset 0, maps it if the host is to
 * see it, and frees it after the buffer. The VkDeviceMemory that it gets is the layer's own: a Span. The driver never
 * sees one, so only the functions below may take it.
 *
 * Kompute ignores the results of vkCreateBuffer and vkAllocateMemory and goes on with null handles. Its wrapper does
 * throw when vkBindBufferMemory or vkMapMemory fail, or when a buffer fits no memory type, so these fail here for null
 * handles: Python gets an exception, the failure says why, and what Kompute forgets then is freed here. */
#include "layer.h"

/* What this thread's next buffer is to be, and what the last one that got memory became. */
static THREAD_LOCAL uint32_t next_tier = N_TIERS;
static THREAD_LOCAL uint32_t tier = N_TIERS;
static THREAD_LOCAL struct { void *address; uint64_t n_bytes; } next_import, import;      /* address NULL: none */
static THREAD_LOCAL VkMemoryRequirements required;
static THREAD_LOCAL uint64_t placement[5];

static VkDeviceMemory memory_of(Span *span) { return (VkDeviceMemory)(uintptr_t)span; }
static Span *span_of(VkDeviceMemory memory) { return (Span *)(uintptr_t)memory; }

/* The tier of the next buffer that this thread makes (a Tier; N_TIERS: as Kompute's choice of memory type says). */
EXPORT void vkllm_layer_place_next(uint32_t wanted) { next_tier = wanted < N_TIERS ? wanted : N_TIERS; }

/* The next buffer that this thread makes is n_bytes of host memory at an address, both multiples of the device's
 * alignment. The memory has to be there until the device is destroyed. */
EXPORT void vkllm_layer_import_next(void *address, uint64_t n_bytes) {
  next_import.address = address;
  next_import.n_bytes = n_bytes;
}

/* What addresses and sizes of host memory must be multiples of to be imported; 0: the device imports none. */
EXPORT uint64_t vkllm_layer_import_alignment(uint32_t device) {
  Device *d = device_enter(device);
  if (!d) return 0;
  uint64_t alignment = d->import_alignment;
  device_leave(d);
  return alignment;
}

/* Where this thread's last buffer went: memory type, its heap, its property flags, bytes taken, and the address at
 * which the CPU sees it (0: it does not; a LOCAL buffer never is mapped). */
EXPORT void vkllm_layer_placement(uint64_t out[5]) {
  for (int i = 0; i < 5; i++) out[i] = placement[i];
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreateBuffer(VkDevice device, const VkBufferCreateInfo *info,
                                                 const VkAllocationCallbacks *alloc, VkBuffer *out) {
  Device *d = device_of(device);
  tier = next_tier;
  next_tier = N_TIERS;
  import = next_import;
  next_import.address = NULL;
  VkExternalMemoryBufferCreateInfo external = {.sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO,
                                               .pNext = info->pNext,
                                               .handleTypes = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT};
  VkBufferCreateInfo imported = *info;
  imported.pNext = &external;
  VkResult result = injected(d, INJECT_CREATE_BUFFER);
  if (!result) result = d->next.CreateBuffer(device, import.address ? &imported : info, alloc, out);
  if (!result) return object_made(d);
  *out = VK_NULL_HANDLE;
  return fail(d, "create_buffer", result);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyBuffer(VkDevice device, VkBuffer buffer, const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!buffer || !settle(d)) return;
  d->next.DestroyBuffer(device, buffer, alloc);
  object_gone(d);
}

VKAPI_ATTR void VKAPI_CALL hook_GetBufferMemoryRequirements(VkDevice device, VkBuffer buffer,
                                                            VkMemoryRequirements *out) {
  if (buffer)
    device_of(device)->next.GetBufferMemoryRequirements(device, buffer, out);
  else
    *out = (VkMemoryRequirements){0, 1, 0};       /* no memory type will do */
  required = *out;
}

VKAPI_ATTR VkResult VKAPI_CALL hook_AllocateMemory(VkDevice device, const VkMemoryAllocateInfo *info,
                                                   const VkAllocationCallbacks *alloc, VkDeviceMemory *out) {
  (void)alloc;
  Device *d = device_of(device);
  VkMemoryRequirements needed = required;
  if (needed.size != info->allocationSize)           /* it asked for something else before */
    needed = (VkMemoryRequirements){info->allocationSize, 1, 1u << info->memoryTypeIndex};
  Tier wanted = tier < N_TIERS ? (Tier)tier : tier_of_type(d, info->memoryTypeIndex);
  tier = N_TIERS;
  Span *span = NULL;
  void *address = NULL;
  *out = VK_NULL_HANDLE;
  VkResult result = injected(d, INJECT_ALLOCATE);
  if (import.address) {
    int sound = d->import_alignment && needed.size <= import.n_bytes;
    if (!result) result = sound ? injected(d, INJECT_IMPORT) : VK_ERROR_INVALID_EXTERNAL_HANDLE;
    if (!result) result = span_import(d, import.address, import.n_bytes, needed.memoryTypeBits, &span);
    import.address = NULL;
    if (result) return fail(d, "import", result);
    wanted = READBACK;
  }
  if (!result && !span) result = span_allocate(d, wanted, &needed, &span);
  if (result) return fail(d, "allocate", result);
  if (wanted != LOCAL) result = span_map(d, span, &address);
  if (result) {
    span_free(d, span);
    return fail(d, "map", result);
  }
  VkMemoryType type = d->memory.memoryTypes[span_type(span)];
  placement[0] = span_type(span);
  placement[1] = type.heapIndex;
  placement[2] = type.propertyFlags;
  placement[3] = span->n_bytes;
  placement[4] = (uintptr_t)address;
  *out = memory_of(span);
  return object_made(d);
}

VKAPI_ATTR void VKAPI_CALL hook_FreeMemory(VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks *alloc) {
  (void)alloc;
  Device *d = device_of(device);
  if (!memory || !settle(d)) return;
  span_free(d, span_of(memory));
  object_gone(d);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_BindBufferMemory(VkDevice device, VkBuffer buffer, VkDeviceMemory memory,
                                                     VkDeviceSize offset) {
  Device *d = device_of(device);
  int sound = buffer && memory && !offset;
  VkResult result = sound ? injected(d, INJECT_BIND) : VK_ERROR_OUT_OF_DEVICE_MEMORY;
  if (!result) result = span_bind(d, span_of(memory), buffer);
  if (!result) return result;
  hook_DestroyBuffer(device, buffer, NULL);          /* Kompute throws now and forgets both */
  hook_FreeMemory(device, memory, NULL);
  return fail(d, "bind", result);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_MapMemory(VkDevice device, VkDeviceMemory memory, VkDeviceSize offset,
                                              VkDeviceSize size, VkMemoryMapFlags flags, void **out) {
  (void)size, (void)flags;
  Device *d = device_of(device);
  VkResult result = memory ? span_map(d, span_of(memory), out) : VK_ERROR_MEMORY_MAP_FAILED;
  if (!result) {
    *out = (char *)*out + offset;
    return result;
  }
  if (memory) {                                      /* again Kompute throws and forgets */
    hook_DestroyBuffer(device, span_of(memory)->buffer, NULL);
    hook_FreeMemory(device, memory, NULL);
  }
  return fail(d, "map", result);
}

/* Blocks stay mapped. */
VKAPI_ATTR void VKAPI_CALL hook_UnmapMemory(VkDevice device, VkDeviceMemory memory) { (void)device, (void)memory; }

/* Kompute maps only host-coherent memory, which needs no flush: nothing is left to do. */
VKAPI_ATTR VkResult VKAPI_CALL hook_FlushMappedMemoryRanges(VkDevice device, uint32_t n,
                                                            const VkMappedMemoryRange *ranges) {
  (void)device, (void)n, (void)ranges;
  return VK_SUCCESS;
}
