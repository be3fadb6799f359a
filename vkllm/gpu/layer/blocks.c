/* Suballocation: buffers live in large blocks of device memory.
 *
 * Drivers are made for few large allocations (NVIDIA allows about 4,000, and each costs time and a page of rounding),
 * Kompute makes one for each buffer. A block is one vkAllocateMemory, cut into spans; each span is free or one buffer's.
 * A buffer takes the first free span that holds it, in a block of its memory type; freed spans merge with free
 * neighbours, and a block that is wholly free is given back. A large buffer has a block of its own, so that little is
 * left over at the ends of blocks: plans fill a heap nearly to its end.
 *
 * Blocks of host-visible memory are mapped once, whole, when the first of their buffers is. */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

#define SMALLEST_BLOCK (16ull << 20)
#define LARGEST_BLOCK (256ull << 20)
#define LARGE_BUFFER (16ull << 20)
#define LEAST_ALIGNMENT 256                          /* cache lines of any device, and of the CPU */

struct Block {
  Block *next;
  Span *first;
  VkDeviceMemory memory;
  uint64_t n_bytes;
  uint32_t type;
  int is_whole;                                      /* made for one large buffer */
  char *mapped;                                      /* where the CPU sees it; NULL: not mapped */
};

static uint64_t *allocated_in(Device *d, uint32_t type) {
  return &d->allocated[d->memory.memoryTypes[type].heapIndex];
}
static uint64_t *used_in(Device *d, uint32_t type) { return &d->used[d->memory.memoryTypes[type].heapIndex]; }

static uint64_t aligned(uint64_t offset, uint64_t alignment) { return (offset + alignment - 1) / alignment * alignment; }

/* Cuts n_bytes at an offset out of a free span; NULL: no host memory. The span keeps what is before, if anything. */
static Span *cut(Span *free_span, uint64_t offset, uint64_t n_bytes) {
  uint64_t end = free_span->offset + free_span->n_bytes;
  int has_front = offset > free_span->offset, has_rest = end > offset + n_bytes;
  Span *taken = has_front ? malloc(sizeof *taken) : free_span;
  Span *rest = has_rest ? malloc(sizeof *rest) : NULL;
  if (!taken || (has_rest && !rest)) {
    if (has_front) free(taken);
    free(rest);
    return NULL;
  }
  Span *after = free_span->after;
  if (has_front) {
    *taken = (Span){.before = free_span, .block = free_span->block};
    free_span->after = taken;
    free_span->n_bytes = offset - free_span->offset;
  }
  if (has_rest) {
    *rest = (Span){.before = taken, .after = after, .block = taken->block, .offset = offset + n_bytes, .is_free = 1};
    rest->n_bytes = end - rest->offset;
    if (after) after->before = rest;
    after = rest;
  } else if (after) {
    after->before = taken;
  }
  taken->after = after;
  taken->offset = offset;
  taken->n_bytes = n_bytes;
  taken->is_free = 0;
  taken->buffer = VK_NULL_HANDLE;
  return taken;
}

static Span *take(Block *block, uint64_t n_bytes, uint64_t alignment) {
  for (Span *s = block->first; s; s = s->after) {
    uint64_t offset = aligned(s->offset, alignment);
    if (s->is_free && offset + n_bytes <= s->offset + s->n_bytes) return cut(s, offset, n_bytes);
  }
  return NULL;
}

/* How large the next block of a type is to be: blocks double, so that a small model holds little that it does not
 * use. */
static uint64_t next_block_bytes(const Device *d, uint32_t type, uint64_t n_bytes) {
  if (n_bytes > LARGE_BUFFER) return n_bytes;
  uint64_t bytes = SMALLEST_BLOCK;
  for (const Block *b = d->blocks; b; b = b->next)
    if (b->type == type && !b->is_whole && bytes < LARGEST_BLOCK) bytes *= 2;
  return bytes < d->max_allocation_bytes ? bytes : d->max_allocation_bytes;
}

/* imported: host memory that becomes the block's; NULL: new memory. */
static VkResult add_block(Device *d, uint32_t type, uint64_t n_bytes, void *imported, Block **out) {
  Block *block = calloc(1, sizeof *block);
  Span *whole = calloc(1, sizeof *whole);
  VkImportMemoryHostPointerInfoEXT pointer = {.sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT,
                                              .handleType = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT,
                                              .pHostPointer = imported};
  VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                               .pNext = imported ? &pointer : NULL,
                               .allocationSize = n_bytes,
                               .memoryTypeIndex = type};
  VkResult result = block && whole ? injected(d, INJECT_BLOCK) : VK_ERROR_OUT_OF_HOST_MEMORY;
  if (!result) result = d->next.AllocateMemory(d->handle, &info, NULL, &block->memory);
  if (result) {
    free(block);
    free(whole);
    return result;
  }
  *whole = (Span){.block = block, .n_bytes = n_bytes, .is_free = 1};
  block->next = d->blocks;
  block->first = whole;
  block->n_bytes = n_bytes;
  block->type = type;
  block->mapped = imported;
  d->blocks = *out = block;
  __atomic_fetch_add(allocated_in(d, type), n_bytes, __ATOMIC_RELAXED);
  __atomic_fetch_add(&d->statistics.allocations, 1, __ATOMIC_RELAXED);
  return VK_SUCCESS;
}

static void drop_block(Device *d, Block *block) {
  Block **at = &d->blocks;
  while (*at != block) at = &(*at)->next;
  *at = block->next;
  __atomic_fetch_sub(allocated_in(d, block->type), block->n_bytes, __ATOMIC_RELAXED);
  __atomic_fetch_sub(&d->statistics.allocations, 1, __ATOMIC_RELAXED);
  d->next.FreeMemory(d->handle, block->memory, NULL);      /* unmaps it, too */
  for (Span *s = block->first; s;) {
    Span *after = s->after;
    free(s);
    s = after;
  }
  free(block);
}

static Span *span_in_blocks(Device *d, uint32_t type, const VkMemoryRequirements *required, uint64_t alignment) {
  for (Block *b = d->blocks; b; b = b->next) {
    Span *s = b->type == type ? take(b, required->size, alignment) : NULL;
    if (s) return s;
  }
  return NULL;
}

/* The block is made smaller where its heap has little room or the driver refuses. */
static VkResult span_in_new_block(Device *d, uint32_t type, const VkMemoryRequirements *required, uint64_t alignment,
                                  uint64_t room, Span **out) {
  if (required->size > room) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
  uint64_t n_bytes = next_block_bytes(d, type, required->size);
  if (n_bytes > room) n_bytes = room;
  for (;; n_bytes = n_bytes / 2 > required->size ? n_bytes / 2 : required->size) {
    Block *block = NULL;
    VkResult result = add_block(d, type, n_bytes, NULL, &block);
    if (block) {
      block->is_whole = n_bytes == required->size;
      *out = take(block, required->size, alignment);
      if (*out) return VK_SUCCESS;
      drop_block(d, block);
      return VK_ERROR_OUT_OF_HOST_MEMORY;
    }
    if (n_bytes <= required->size) return result;
  }
}

/* Where VKLLM_LAYER_FILL_MEMORY is set (tests set it to 255: floats that are no numbers), memory that the CPU sees begins with
 * that byte, so that what reads memory before it is written does not pass by luck. */
static void fill(Device *d, const Span *s) {
  const char *byte = getenv("VKLLM_LAYER_FILL_MEMORY");
  Block *block = s->block;
  void *mapped = NULL;
  if (!byte || !(d->memory.memoryTypes[block->type].propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT)) return;
  if (!block->mapped && !d->next.MapMemory(d->handle, block->memory, 0, VK_WHOLE_SIZE, 0, &mapped)) block->mapped = mapped;
  if (block->mapped) memset(block->mapped + s->offset, atoi(byte), s->n_bytes);
}

VkResult span_allocate(Device *d, Tier tier, const VkMemoryRequirements *required, Span **out) {
  uint64_t alignment = required->alignment > LEAST_ALIGNMENT ? required->alignment : LEAST_ALIGNMENT;
  VkResult result = VK_ERROR_OUT_OF_DEVICE_MEMORY;
  uint64_t room[VK_MAX_MEMORY_HEAPS];
  int is_room_known = 0;                             /* asking the driver takes time */
  *out = NULL;
  if (required->size > d->max_allocation_bytes) return result;
  lock(&d->memory_lock);
  /* From type to type as the tier orders them: one without room may have a free span, one with room may refuse. */
  for (uint32_t untried = required->memoryTypeBits; untried && !*out;) {
    int32_t type = vkllm_layer_choose_type(&d->memory, NULL, tier, untried, required->size);
    if (type < 0) break;
    untried &= ~(1u << type);
    *out = span_in_blocks(d, (uint32_t)type, required, alignment);
    if (*out) break;
    if (!is_room_known) heap_rooms(d, room);
    is_room_known = 1;
    uint64_t heap_room = room[d->memory.memoryTypes[type].heapIndex];
    result = span_in_new_block(d, (uint32_t)type, required, alignment, heap_room, out);
  }
  if (*out) __atomic_fetch_add(used_in(d, (*out)->block->type), (*out)->n_bytes, __ATOMIC_RELAXED);
  if (*out) fill(d, *out);
  unlock(&d->memory_lock);
  return *out ? VK_SUCCESS : result;
}

/* A block of its own for host memory that others hold, too. It counts in the heap of its type, as its room does. */
VkResult span_import(Device *d, void *address, uint64_t n_bytes, uint32_t type_bits, Span **out) {
  const VkExternalMemoryHandleTypeFlagBits handle = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT;
  VkMemoryHostPointerPropertiesEXT usable = {.sType = VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT};
  *out = NULL;
  if (!d->next.GetMemoryHostPointerPropertiesEXT) return VK_ERROR_EXTENSION_NOT_PRESENT;
  VkResult result = d->next.GetMemoryHostPointerPropertiesEXT(d->handle, handle, address, &usable);
  if (result) return result;
  type_bits &= usable.memoryTypeBits;
  int32_t type = vkllm_layer_choose_type(&d->memory, NULL, READBACK, type_bits, n_bytes);
  for (uint32_t i = 0; type < 0 && i < d->memory.memoryTypeCount; i++)
    if (type_bits >> i & 1) type = (int32_t)i;
  if (type < 0) return VK_ERROR_INVALID_EXTERNAL_HANDLE;
  uint64_t room[VK_MAX_MEMORY_HEAPS];
  lock(&d->memory_lock);
  heap_rooms(d, room);
  Block *block = NULL;
  result = VK_ERROR_OUT_OF_DEVICE_MEMORY;
  if (n_bytes <= room[d->memory.memoryTypes[type].heapIndex]) result = add_block(d, (uint32_t)type, n_bytes, address, &block);
  if (block) {
    block->is_whole = 1;
    *out = take(block, n_bytes, 1);                  /* the whole block: needs no memory, so cannot fail */
    __atomic_fetch_add(used_in(d, block->type), n_bytes, __ATOMIC_RELAXED);
  }
  unlock(&d->memory_lock);
  return result;
}

/* Joins a free span with the free one after it. */
static void merge(Span *s) {
  Span *gone = s->after;
  if (!s->is_free || !gone || !gone->is_free) return;
  s->n_bytes += gone->n_bytes;
  s->after = gone->after;
  if (s->after) s->after->before = s;
  free(gone);
}

void span_free(Device *d, Span *s) {
  lock(&d->memory_lock);
  Block *block = s->block;
  __atomic_fetch_sub(used_in(d, block->type), s->n_bytes, __ATOMIC_RELAXED);
  s->is_free = 1;
  merge(s);
  if (s->before) merge(s->before);
  if (block->first->is_free && !block->first->after) drop_block(d, block);
  unlock(&d->memory_lock);
}

VkResult span_bind(Device *d, Span *s, VkBuffer buffer) {
  s->buffer = buffer;
  return d->next.BindBufferMemory(d->handle, buffer, s->block->memory, s->offset);
}

VkResult span_map(Device *d, Span *s, void **out) {
  lock(&d->memory_lock);
  Block *block = s->block;
  void *mapped = block->mapped;
  VkResult result = injected(d, INJECT_MAP);
  if (!result && !mapped) result = d->next.MapMemory(d->handle, block->memory, 0, VK_WHOLE_SIZE, 0, &mapped);
  if (!result) {
    block->mapped = mapped;
    *out = block->mapped + s->offset;
  }
  unlock(&d->memory_lock);
  return result;
}

uint32_t span_type(const Span *s) { return s->block->type; }

void blocks_close(Device *d) {
  while (d->blocks) {                                /* of buffers that were never destroyed */
    for (Span *s = d->blocks->first; s; s = s->after)
      if (s->buffer && !s->is_free) d->next.DestroyBuffer(d->handle, s->buffer, NULL);
    drop_block(d, d->blocks);
  }
}
