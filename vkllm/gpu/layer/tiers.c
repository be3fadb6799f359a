/* Which memory a buffer gets: tiers, and what room the heaps have.
 *
 * Kompute asks for the first memory type of a kind; Python says, for its thread's next buffer, which tier it wants. A
 * tier is an ordered list of property sets; the first type whose heap has room serves, and if the driver refuses, the
 * next one. Drivers' lists differ: NVIDIA's first host-visible type is slow to read for the CPU, a card without
 * resizable BAR has a device-local and host-visible heap of 256 MiB that is not to be eaten by weights, and a unified
 * device may have nothing but device-local memory.
 *
 * Room is the driver's budget where it tells one (VK_EXT_memory_budget), and never more than the heap, or the limit
 * that Python set, less what this process holds; a margin stays free. */
#include <string.h>

#include "layer.h"

enum { DEVICE = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, CACHED = VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
       VISIBLE = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT };
/* Types that need a feature of their own, or are no plain memory. */
#define STRANGE                                                                                                  \
  (VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT | VK_MEMORY_PROPERTY_PROTECTED_BIT |                                  \
   VK_MEMORY_PROPERTY_DEVICE_COHERENT_BIT_AMD | VK_MEMORY_PROPERTY_DEVICE_UNCACHED_BIT_AMD)

/* with, without: properties. is_last_resort: only on devices that have no type of the sets before. */
static const struct {
  VkMemoryPropertyFlags with, without;
  int is_last_resort;
} tiers[N_TIERS][3] = {
    [LOCAL] = {{DEVICE, VISIBLE, 0}, {DEVICE, 0, 0}},
    /* Uncached first: the CPU streams into it, and an APU's GPU reads it without asking the CPU's caches. */
    [HOST] = {{VISIBLE, DEVICE | CACHED, 0}, {VISIBLE, DEVICE, 0}, {VISIBLE, 0, 1}},
    [READBACK] = {{VISIBLE | CACHED, DEVICE, 0}, {VISIBLE | CACHED, 0, 0}, {VISIBLE, 0, 1}},
};

/* The memory type for n_bytes of a tier, of those in type_bits; -1: none has room. room: bytes free in each heap; NULL:
 * do not look at room. Pure, so that tests try it on the lists of drivers that are not there. */
EXPORT int32_t vkllm_layer_choose_type(const VkPhysicalDeviceMemoryProperties *memory, const uint64_t *room,
                                       uint32_t tier, uint32_t type_bits, uint64_t n_bytes) {
  int is_met = 0;
  for (size_t s = 0; tier < N_TIERS && s < 3 && tiers[tier][s].with; s++) {
    if (tiers[tier][s].is_last_resort && is_met) break;
    for (uint32_t i = 0; i < memory->memoryTypeCount; i++) {
      VkMemoryType type = memory->memoryTypes[i];
      if ((type.propertyFlags & tiers[tier][s].with) != tiers[tier][s].with ||
          type.propertyFlags & (tiers[tier][s].without | STRANGE))
        continue;
      is_met = 1;
      if (type_bits >> i & 1 && (!room || room[type.heapIndex] >= n_bytes)) return (int32_t)i;
    }
  }
  return -1;
}

/* The tier of a buffer that Python said nothing of: what Kompute's own choice of type means. */
Tier tier_of_type(const Device *d, uint32_t type) {
  return d->memory.memoryTypes[type].propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT ? READBACK : LOCAL;
}

static int is_local(const Device *d, uint32_t heap) {
  return (d->memory.memoryHeaps[heap].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

/* Left free of a heap, at most: budgets are estimates, and the driver has needs of its own. */
#define MOST_MARGIN (128ull << 20)

/* What Python is told of a heap, in the order of its HeapUse. */
#define UNKNOWN UINT64_MAX
typedef struct {
  uint64_t is_local, size, budget, driver_usage, allocated, used, room;
} HeapUse;

static void measure(Device *d, HeapUse out[VK_MAX_MEMORY_HEAPS]) {
  VkPhysicalDeviceMemoryBudgetPropertiesEXT budgets = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
  VkPhysicalDeviceMemoryProperties2 memory = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                              .pNext = &budgets};
  int has_budget = (d->enabled & BIT(MEMORY_BUDGET)) != 0;
  if (has_budget) d->memory_properties2(d->gpu, &memory);
  for (uint32_t h = 0; h < d->memory.memoryHeapCount; h++) {
    uint64_t limit = __atomic_load_n(is_local(d, h) ? &d->vram_limit : &d->ram_limit, __ATOMIC_RELAXED);
    HeapUse *use = &out[h];
    *use = (HeapUse){.is_local = is_local(d, h), .budget = UNKNOWN, .driver_usage = UNKNOWN};
    use->size = least(d->memory.memoryHeaps[h].size, limit);
    use->allocated = allocated_of_gpu(d, h);
    use->used = __atomic_load_n(&d->used[h], __ATOMIC_RELAXED);
    uint64_t room = less(use->size, use->allocated);
    if (has_budget) {
      use->budget = least(budgets.heapBudget[h], limit);
      use->driver_usage = budgets.heapUsage[h];
      room = least(room, less(use->budget, use->driver_usage));
    }
    use->room = less(room, least(use->size / 64, MOST_MARGIN));
  }
}

void heap_rooms(Device *d, uint64_t room[VK_MAX_MEMORY_HEAPS]) {
  HeapUse heaps[VK_MAX_MEMORY_HEAPS] = {0};
  measure(d, heaps);
  for (uint32_t h = 0; h < VK_MAX_MEMORY_HEAPS; h++) room[h] = heaps[h].room;
}

/* Copies a device's heaps, HeapUse after HeapUse, up to n numbers; returns how many heaps there are. */
EXPORT uint32_t vkllm_layer_heaps(uint32_t device, uint64_t *out, uint32_t n) {
  Device *d = device_enter(device);
  if (!d) return 0;
  HeapUse heaps[VK_MAX_MEMORY_HEAPS] = {0};
  measure(d, heaps);
  uint32_t n_heaps = d->memory.memoryHeapCount;
  device_leave(d);
  size_t n_bytes = n_heaps * sizeof(HeapUse);
  memcpy(out, heaps, n_bytes < n * sizeof *out ? n_bytes : n * sizeof *out);
  return n_heaps;
}

/* Each device-local heap is taken to have at most vram bytes, and each other one ram bytes; UINT64_MAX: no limit. */
EXPORT void vkllm_layer_limit_memory(uint32_t device, uint64_t vram, uint64_t ram) {
  Device *d = device_enter(device);
  if (!d) return;
  __atomic_store_n(&d->vram_limit, vram, __ATOMIC_RELAXED);
  __atomic_store_n(&d->ram_limit, ram, __ATOMIC_RELAXED);
  device_leave(d);
}

void heaps_open(Device *d, Instance *instance, VkPhysicalDevice gpu, const VkPhysicalDeviceProperties *properties) {
  d->gpu = gpu;
  d->vram_limit = d->ram_limit = UINT64_MAX;
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceMemoryProperties)(gpu, &d->memory);
  d->max_allocation_bytes = UINT64_MAX;
  if (properties->apiVersion < VK_API_VERSION_1_1) return;
  d->memory_properties2 = INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceMemoryProperties2);
  VkPhysicalDeviceExternalMemoryHostPropertiesEXT imports = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT};
  VkPhysicalDeviceMaintenance3Properties limits = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES,
      .pNext = d->enabled & BIT(EXTERNAL_MEMORY_HOST) ? &imports : NULL};
  VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES, .pNext = &limits};
  VkPhysicalDeviceProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &id};
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceProperties2)(gpu, &all);
  d->max_allocation_bytes = limits.maxMemoryAllocationSize;
  if (d->enabled & BIT(EXTERNAL_MEMORY_HOST)) d->import_alignment = imports.minImportedHostPointerAlignment;
  memcpy(d->gpu_uuid, id.deviceUUID, VK_UUID_SIZE);
}
