/* Pipelines: equal ones are made once and shared.
 *
 * Kompute makes a shader module, two layouts, a pipeline cache and a pipeline for each Algorithm, and a model has
 * hundreds that differ in their buffers only. Two pipelines are equal if SPIR-V, entry point, specialisation,
 * required subgroup size, descriptor bindings and push constant ranges are; then one handle serves both (layouts that
 * are defined alike are compatible) and is destroyed with its last user, or some time later if the device is to keep
 * unused ones. SPIR-V and layouts are told apart by 128-bit hash and size.
 */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

/* What makes two pipelines equal. */
typedef struct {
  Signature module, layout;
  Hash entry_point, specialisation;
  uint64_t specialisation_bytes, subgroup_size, flags;
} Key;

struct SharedPipeline {
  SharedPipeline *next;
  Key key;
  VkPipeline handle;
  uint32_t users;                                    /* 0: kept for algorithms to come */
};

static THREAD_LOCAL uint32_t required_subgroup_size;

/* The pipelines that this thread makes from now on have this subgroup size, which their local size must be a multiple
 * of, and full subgroups where the device can promise them; 0: the driver chooses. Ignored, and counted in
 * subgroup_sizes_ignored, where the device cannot do it. */
EXPORT void vkllm_layer_require_subgroup_size(uint32_t n) { required_subgroup_size = n; }

/* ---- signatures of modules and layouts ---- */

static void remember(Device *d, Signatures *table, uint64_t handle, Hash hash, uint64_t size) {
  lock(&d->pipelines_lock);
  if (table->n == table->capacity) {
    uint32_t capacity = table->capacity ? 2 * table->capacity : 64;
    Signature *items = realloc(table->items, capacity * sizeof *items);
    if (items) table->items = items, table->capacity = capacity;
  }
  /* Out of memory: what is not remembered is not shared. */
  if (table->n < table->capacity) table->items[table->n++] = (Signature){handle, hash, size};
  unlock(&d->pipelines_lock);
}

/* Newest first: Kompute makes a pipeline right after its module and layouts. Handle 0 in the result: unknown. */
static Signature signature_of(const Signatures *table, uint64_t handle) {
  for (uint32_t i = table->n; i--;)
    if (table->items[i].handle == handle) return table->items[i];
  return (Signature){0};
}

static void forget(Device *d, Signatures *table, uint64_t handle) {
  lock(&d->pipelines_lock);
  for (uint32_t i = table->n; i--;)
    if (table->items[i].handle == handle) {
      table->items[i] = table->items[--table->n];
      break;
    }
  unlock(&d->pipelines_lock);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreateDescriptorSetLayout(VkDevice device,
                                                              const VkDescriptorSetLayoutCreateInfo *info,
                                                              const VkAllocationCallbacks *alloc,
                                                              VkDescriptorSetLayout *out) {
  Device *d = device_of(device);
  VkResult result = injected(d, INJECT_SET_LAYOUT);
  if (!result) result = d->next.CreateDescriptorSetLayout(device, info, alloc, out);
  if (result) {
    *out = VK_NULL_HANDLE;
    return fail(d, "create_descriptor_set_layout", result);
  }
  Hash h = hash_of(&info->flags, sizeof info->flags);
  int plain = !info->pNext;
  for (uint32_t i = 0; i < info->bindingCount; i++) {
    const VkDescriptorSetLayoutBinding *b = &info->pBindings[i];
    uint32_t fields[4] = {b->binding, b->descriptorType, b->descriptorCount, b->stageFlags};
    h = hash_more(h, fields, sizeof fields);
    plain &= !b->pImmutableSamplers;
  }
  if (plain) remember(d, &d->set_layouts, HANDLE(*out), h, info->bindingCount);
  unfinished_algorithm()->set_layout = *out;
  return object_made(d);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyDescriptorSetLayout(VkDevice device, VkDescriptorSetLayout layout,
                                                           const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!layout) return;
  forget(d, &d->set_layouts, HANDLE(layout));
  d->next.DestroyDescriptorSetLayout(device, layout, alloc);
  object_gone(d);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreatePipelineLayout(VkDevice device, const VkPipelineLayoutCreateInfo *info,
                                                         const VkAllocationCallbacks *alloc, VkPipelineLayout *out) {
  Device *d = device_of(device);
  VkResult result = VK_ERROR_INITIALIZATION_FAILED;
  int sound = 1, known = !info->pNext;
  Hash h = hash_of(&info->flags, sizeof info->flags);
  lock(&d->pipelines_lock);
  for (uint32_t i = 0; i < info->setLayoutCount; i++) {
    Signature set = signature_of(&d->set_layouts, HANDLE(info->pSetLayouts[i]));
    sound &= info->pSetLayouts[i] != VK_NULL_HANDLE;
    known &= set.handle != 0;
    h = hash_more(hash_more(h, &set.hash, sizeof set.hash), &set.size, sizeof set.size);
  }
  unlock(&d->pipelines_lock);
  h = hash_more(h, info->pPushConstantRanges, info->pushConstantRangeCount * sizeof(VkPushConstantRange));
  if (sound) result = injected(d, INJECT_PIPELINE_LAYOUT);
  if (sound && !result) result = d->next.CreatePipelineLayout(device, info, alloc, out);
  if (result) {
    *out = VK_NULL_HANDLE;
    return fail(d, "create_pipeline_layout", result);
  }
  if (known)
    remember(d, &d->pipeline_layouts, HANDLE(*out), h, info->setLayoutCount * 64ull + info->pushConstantRangeCount);
  unfinished_algorithm()->layout = *out;
  return object_made(d);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyPipelineLayout(VkDevice device, VkPipelineLayout layout,
                                                      const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!layout) return;
  forget(d, &d->pipeline_layouts, HANDLE(layout));
  d->next.DestroyPipelineLayout(device, layout, alloc);
  object_gone(d);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreateShaderModule(VkDevice device, const VkShaderModuleCreateInfo *info,
                                                       const VkAllocationCallbacks *alloc, VkShaderModule *out) {
  Device *d = device_of(device);
  VkResult result = injected(d, INJECT_MODULE);
  if (!result) result = d->next.CreateShaderModule(device, info, alloc, out);
  if (result) {
    *out = VK_NULL_HANDLE;
    return fail(d, "create_shader_module", result);
  }
  if (!info->pNext && !info->flags)
    remember(d, &d->modules, HANDLE(*out), hash_of(info->pCode, info->codeSize), info->codeSize);
  unfinished_algorithm()->module = *out;
  return object_made(d);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyShaderModule(VkDevice device, VkShaderModule module,
                                                    const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!module) return;
  forget(d, &d->modules, HANDLE(module));
  d->next.DestroyShaderModule(device, module, alloc);
  object_gone(d);
}

/* ---- pipelines ---- */

/* Whether the pipeline can be shared, and under which key. */
static int key_of_pipeline(Device *d, const VkComputePipelineCreateInfo *info, uint32_t subgroup_size, Key *key) {
  const VkPipelineShaderStageCreateInfo *stage = &info->stage;
  const VkSpecializationInfo *s = stage->pSpecializationInfo;
  memset(key, 0, sizeof *key);
  key->module = signature_of(&d->modules, HANDLE(stage->module));
  key->layout = signature_of(&d->pipeline_layouts, HANDLE(info->layout));
  if (!key->module.handle || !key->layout.handle || info->pNext || stage->pNext || info->basePipelineHandle) return 0;
  key->module.handle = key->layout.handle = 0;       /* equal contents under another handle are equal */
  key->entry_point = hash_of(stage->pName, strlen(stage->pName));
  key->specialisation = hash_of(NULL, 0);
  for (uint32_t i = 0; s && i < s->mapEntryCount; i++) {
    const VkSpecializationMapEntry *e = &s->pMapEntries[i];
    uint64_t id_and_size[2] = {e->constantID, e->size};
    key->specialisation = hash_more(key->specialisation, id_and_size, sizeof id_and_size);
    key->specialisation = hash_more(key->specialisation, (const char *)s->pData + e->offset, e->size);
    key->specialisation_bytes += e->size;
  }
  key->subgroup_size = subgroup_size;
  key->flags = (uint64_t)info->flags << 32 | stage->flags;
  return 1;
}

/* Makes or finds one pipeline. Call with d->pipelines_lock held. */
static VkResult pipeline(Device *d, VkPipelineCache cache, const VkComputePipelineCreateInfo *wanted,
                         const VkAllocationCallbacks *alloc, VkPipeline *out) {
  VkComputePipelineCreateInfo info = *wanted;
  VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size = {
      .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
      .pNext = (void *)info.stage.pNext,
      .requiredSubgroupSize = required_subgroup_size};
  int size_wanted = size.requiredSubgroupSize != 0;
  int size_got = size_wanted && size.requiredSubgroupSize >= d->min_subgroup_size &&
                 size.requiredSubgroupSize <= d->max_subgroup_size &&
                 !(size.requiredSubgroupSize & (size.requiredSubgroupSize - 1)) &&
                 (d->can_require_size || d->min_subgroup_size == d->max_subgroup_size);
  int full = size_got && (d->enabled & BIT(COMPUTE_FULL_SUBGROUPS));
  Key key;
  int shareable = key_of_pipeline(d, &info, size_got ? size.requiredSubgroupSize : 0, &key);
  SharedPipeline *p = shareable ? d->pipelines : NULL;
  while (p && memcmp(&p->key, &key, sizeof key)) p = p->next;
  VkResult result = VK_SUCCESS;
  if (p) {
    if (!p->users++) d->pipelines_kept--;
    *out = p->handle;
  } else {
    if (size_got && d->can_require_size) info.stage.pNext = &size;
    if (full) info.stage.flags |= VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
    result = injected(d, INJECT_PIPELINE);
    if (!result && (!info.stage.module || !info.layout)) result = VK_ERROR_INITIALIZATION_FAILED;
    if (!result) result = d->next.CreateComputePipelines(d->handle, cache, 1, &info, alloc, out);
    if (result < 0) return result;
    SharedPipeline *made = shareable ? malloc(sizeof *made) : NULL;
    if (made) {
      *made = (SharedPipeline){d->pipelines, key, *out, 1};
      d->pipelines = made;
    }
  }
  lock(&d->lock);
  if (p)
    d->statistics.pipelines_shared++;
  else
    d->statistics.pipelines_created++;
  d->statistics.subgroup_sizes_ignored += size_wanted && !size_got;
  d->statistics.full_subgroups += full;
  unlock(&d->lock);
  return result;
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreateComputePipelines(VkDevice device, VkPipelineCache cache, uint32_t n,
                                                           const VkComputePipelineCreateInfo *infos,
                                                           const VkAllocationCallbacks *alloc, VkPipeline *out) {
  Device *d = device_of(device);
  VkResult result = VK_SUCCESS;
  for (uint32_t i = 0; i < n; i++) {
    out[i] = VK_NULL_HANDLE;
    lock(&d->pipelines_lock);
    VkResult one = pipeline(d, cache, &infos[i], alloc, &out[i]);
    unlock(&d->pipelines_lock);
    if (one < 0) result = fail(d, "create_pipeline", one);
    else object_made(d);
  }
  if (result) unfinished_destroy(device);
  *unfinished_algorithm() = (Unfinished){0};
  return result;
}

/* The pipeline that was made first of those without users, which is no longer known; there is one. */
static VkPipeline forget_oldest_unused(Device *d) {
  SharedPipeline **oldest = NULL;
  for (SharedPipeline **at = &d->pipelines; *at; at = &(*at)->next)
    if (!(*at)->users) oldest = at;
  SharedPipeline *p = *oldest;
  VkPipeline handle = p->handle;
  *oldest = p->next;
  free(p);
  d->pipelines_kept--;
  return handle;
}

/* How many pipelines without users a device keeps, at first none. Those beyond are destroyed, first made first. */
EXPORT void vkllm_layer_keep_pipelines(uint32_t device, uint32_t n) {
  Device *d = device_enter(device);
  if (!d) return;
  lock(&d->pipelines_lock);
  d->pipelines_to_keep = n;
  while (d->pipelines_kept > n) {
    VkPipeline handle = forget_oldest_unused(d);
    if (settle(d)) d->next.DestroyPipeline(d->handle, handle, NULL);
  }
  unlock(&d->pipelines_lock);
  device_leave(d);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyPipeline(VkDevice device, VkPipeline handle,
                                                const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (!handle) return;
  lock(&d->pipelines_lock);
  SharedPipeline *p = d->pipelines;
  while (p && p->handle != handle) p = p->next;
  int destroyed = !p;
  if (p && !--p->users && ++d->pipelines_kept > d->pipelines_to_keep) {
    handle = forget_oldest_unused(d);
    destroyed = 1;
  }
  unlock(&d->pipelines_lock);
  if (destroyed && !settle(d)) return;
  if (destroyed) d->next.DestroyPipeline(device, handle, alloc);
  object_gone(d);
}

void pipelines_close(Device *d) {
  while (d->pipelines) {                             /* kept, or of algorithms that were never destroyed */
    SharedPipeline *p = d->pipelines;
    d->pipelines = p->next;
    d->next.DestroyPipeline(d->handle, p->handle, NULL);
    free(p);
  }
  free(d->modules.items);
  free(d->set_layouts.items);
  free(d->pipeline_layouts.items);
}
