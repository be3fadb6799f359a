/* Which optional features and extensions of a device are enabled: those that vkllm's shaders use and the device
 * reports, never others. Kompute itself enables none, so without this fp16, int8 or cooperative matrices in a
 * shader would be invalid use.
 *
 * Each feature lives in a structure that a device knows either because its Vulkan version has it or because it
 * lists an extension. Only structures that it knows are chained, so Vulkan 1.1 and 1.2 devices work too.
 *
 * For tests, the layer can be made to see a lesser device: VKLLM_LAYER_HIDE_FEATURES holds names separated by commas,
 * VKLLM_LAYER_VULKAN_MINOR a highest minor version. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "layer.h"

/* Debian 12's headers (1.3.239) are older than this extension. */
#ifndef VK_KHR_cooperative_matrix
#define VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR ((VkStructureType)1000506000)
typedef struct {
  VkStructureType sType;
  void *pNext;
  VkBool32 cooperativeMatrix;
  VkBool32 cooperativeMatrixRobustBufferAccess;
} VkPhysicalDeviceCooperativeMatrixFeaturesKHR;
#endif

typedef struct {
  VkPhysicalDeviceFeatures2 core;
  VkPhysicalDeviceShaderFloat16Int8Features float16_int8;
  VkPhysicalDeviceVulkanMemoryModelFeatures memory_model;
  VkPhysicalDeviceShaderIntegerDotProductFeatures integer_dot;
  VkPhysicalDeviceSubgroupSizeControlFeatures subgroup_size;
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR cooperative_matrix;
} Chain;

/* core_since: the version that needs no extension; 0: none does. */
typedef struct {
  size_t offset;
  VkStructureType type;
  uint32_t core_since;
  const char *extension;
} Structure;
static const Structure structures[] = {
    {offsetof(Chain, float16_int8), VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES, VK_API_VERSION_1_2,
     "VK_KHR_shader_float16_int8"},
    {offsetof(Chain, memory_model), VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES, VK_API_VERSION_1_2,
     "VK_KHR_vulkan_memory_model"},
    {offsetof(Chain, integer_dot), VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES,
     VK_API_VERSION_1_3, "VK_KHR_shader_integer_dot_product"},
    {offsetof(Chain, subgroup_size), VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES,
     VK_API_VERSION_1_3, "VK_EXT_subgroup_size_control"},
    {offsetof(Chain, cooperative_matrix), VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR, 0,
     "VK_KHR_cooperative_matrix"},
};
#define N_STRUCTURES (sizeof structures / sizeof structures[0])

/* In the order of Feature. A feature is a flag in a structure, or an extension by itself. */
static const struct {
  const char *name;
  size_t structure, flag;
  const char *extension;
} features[N_FEATURES] = {
#define FLAG(name, structure, flag) {name, offsetof(Chain, structure), offsetof(Chain, structure.flag), NULL}
    FLAG("fp16", float16_int8, shaderFloat16),
    FLAG("integer_dot_product", integer_dot, shaderIntegerDotProduct),
    FLAG("memory_model", memory_model, vulkanMemoryModel),
    FLAG("memory_model_device_scope", memory_model, vulkanMemoryModelDeviceScope),
    FLAG("cooperative_matrix", cooperative_matrix, cooperativeMatrix),
    FLAG("subgroup_size_control", subgroup_size, subgroupSizeControl),
    FLAG("compute_full_subgroups", subgroup_size, computeFullSubgroups),
    {"memory_budget", 0, 0, "VK_EXT_memory_budget"},
    {"external_memory_host", 0, 0, "VK_EXT_external_memory_host"},
#undef FLAG
};

/* One vkCreateDevice on its way down: the application's wishes and what the layer adds. */
struct DeviceRequest {
  VkDeviceCreateInfo info;
  Chain chain;
  const char **extensions;
  uint64_t reported, enabled;
  uint32_t min_subgroup_size, max_subgroup_size;
  int can_require_size;
};

/* The short name of a feature; NULL past the last. */
EXPORT const char *vkllm_layer_feature_name(uint32_t feature) {
  return feature < N_FEATURES ? features[feature].name : NULL;
}

static VkBool32 *flag_of(Chain *chain, Feature feature) { return (VkBool32 *)((char *)chain + features[feature].flag); }

typedef struct {
  VkExtensionProperties *items;
  uint32_t n;
} Extensions;

static int listed(const Extensions *all, const char *name) {
  for (uint32_t i = 0; name && i < all->n; i++)
    if (!strcmp(all->items[i].extensionName, name)) return 1;
  return 0;
}

static int is_core(const Structure *s, uint32_t version) { return s->core_since && version >= s->core_since; }

/* Empties the chain and links the structures of `mask` (bit n: structures[n]); `tail` follows the last. */
static void link_chain(Chain *chain, uint64_t mask, void *tail) {
  memset(chain, 0, sizeof *chain);
  chain->core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
  VkBaseOutStructure *last = (VkBaseOutStructure *)&chain->core;
  for (size_t i = 0; i < N_STRUCTURES; i++) {
    if (!(mask >> i & 1)) continue;
    VkBaseOutStructure *added = (VkBaseOutStructure *)((char *)chain + structures[i].offset);
    added->sType = structures[i].type;
    last->pNext = added;
    last = added;
  }
  last->pNext = tail;
}

static uint64_t hidden_features(void) {
  uint64_t mask = 0;
  const char *rest = getenv("VKLLM_LAYER_HIDE_FEATURES");
  while (rest && *rest) {
    size_t n = strcspn(rest, ",");
    for (int f = 0; f < N_FEATURES; f++)
      if (strlen(features[f].name) == n && !strncmp(rest, features[f].name, n)) mask |= BIT(f);
    rest += n + (rest[n] == ',');
  }
  return mask;
}

static uint32_t version_of(const VkPhysicalDeviceProperties *properties) {
  const char *minor = getenv("VKLLM_LAYER_VULKAN_MINOR");
  uint32_t highest = minor ? VK_MAKE_API_VERSION(0, 1, strtoul(minor, NULL, 10), 0) : UINT32_MAX;
  return properties->apiVersion < highest ? properties->apiVersion : highest;
}

/* What a device reports of the features above, as a mask; `known` gets the structures that it knows. */
static uint64_t reported_features(Instance *instance, VkPhysicalDevice gpu, uint32_t version,
                                  const Extensions *extensions, Chain *chain, uint64_t *known) {
  uint64_t mask = 0;
  *known = 0;
  for (size_t i = 0; i < N_STRUCTURES; i++)
    if (is_core(&structures[i], version) || listed(extensions, structures[i].extension)) *known |= 1ull << i;
  link_chain(chain, *known, NULL);
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceFeatures2)(gpu, &chain->core);
  for (int f = 0; f < N_FEATURES; f++)
    if (features[f].extension ? listed(extensions, features[f].extension) : *flag_of(chain, f) == VK_TRUE)
      mask |= BIT(f);
  mask &= ~hidden_features();
  /* Shaders with cooperative matrices declare the Vulkan memory model: the one is of no use without the other. */
  /* And atomics of shaders that declare none have the device's scope, which must then be enabled too. */
  uint64_t model = BIT(MEMORY_MODEL) | BIT(MEMORY_MODEL_DEVICE_SCOPE);
  if ((mask & model) != model) mask &= ~(model | BIT(COOPERATIVE_MATRIX));
  return mask;
}

static void subgroup_limits(Instance *instance, VkPhysicalDevice gpu, DeviceRequest *request) {
  VkPhysicalDeviceSubgroupSizeControlProperties limits = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES};
  VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &limits};
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceProperties2)(gpu, &properties);
  request->can_require_size = !!(limits.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT);
  request->min_subgroup_size = limits.minSubgroupSize;
  request->max_subgroup_size = limits.maxSubgroupSize;
}

/* Whether the application already asks for features itself (Kompute never does); then it gets just those. */
static int asks_for_features(const VkDeviceCreateInfo *info) {
  for (const VkBaseInStructure *s = info->pNext; s; s = s->pNext)
    if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2) return 1;
  return info->pEnabledFeatures != NULL;
}

static void add_extension(DeviceRequest *request, const char *name) {
  for (uint32_t i = 0; i < request->info.enabledExtensionCount; i++)
    if (!strcmp(request->extensions[i], name)) return;
  request->extensions[request->info.enabledExtensionCount++] = name;
}

/* Turns the application's request into the one that goes on to the driver; NULL: out of host memory. */
DeviceRequest *features_request(Instance *instance, VkPhysicalDevice gpu, const VkDeviceCreateInfo *wanted) {
  DeviceRequest *request = calloc(1, sizeof *request);
  if (!request) return NULL;
  request->info = *wanted;
  VkPhysicalDeviceProperties properties;
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceProperties)(gpu, &properties);
  uint32_t version = version_of(&properties);
  if (version < VK_API_VERSION_1_1 || asks_for_features(wanted)) return request;

  PFN_vkEnumerateDeviceExtensionProperties enumerate =
      INSTANCE_FUNCTION(instance, vkEnumerateDeviceExtensionProperties);
  Extensions extensions = {NULL, 0};
  enumerate(gpu, NULL, &extensions.n, NULL);
  extensions.items = calloc(extensions.n + 1, sizeof *extensions.items);
  request->extensions = calloc(wanted->enabledExtensionCount + N_STRUCTURES + N_FEATURES, sizeof *request->extensions);
  if (!extensions.items || !request->extensions) {
    free(extensions.items);
    features_free(request);
    return NULL;
  }
  enumerate(gpu, NULL, &extensions.n, extensions.items);

  uint64_t known;
  request->reported = reported_features(instance, gpu, version, &extensions, &request->chain, &known);
  request->enabled = request->reported;
  free(extensions.items);
  if (request->enabled & BIT(SUBGROUP_SIZE_CONTROL)) subgroup_limits(instance, gpu, request);

  uint64_t used = 0;
  for (size_t i = 0; i < N_STRUCTURES; i++)
    for (int f = 0; f < N_FEATURES; f++)
      if (request->enabled & BIT(f) && !features[f].extension && features[f].structure == structures[i].offset)
        used |= 1ull << i;
  link_chain(&request->chain, used, (void *)wanted->pNext);
  for (uint32_t i = 0; i < wanted->enabledExtensionCount; i++)
    request->extensions[i] = wanted->ppEnabledExtensionNames[i];
  request->info.ppEnabledExtensionNames = request->extensions;
  for (size_t i = 0; i < N_STRUCTURES; i++)
    if (used >> i & 1 && !is_core(&structures[i], version)) add_extension(request, structures[i].extension);
  for (int f = 0; f < N_FEATURES; f++) {
    if (!(request->enabled & BIT(f))) continue;
    if (features[f].extension)
      add_extension(request, features[f].extension);
    else
      *flag_of(&request->chain, f) = VK_TRUE;
  }
  request->info.pNext = &request->chain.core;
  return request;
}

const VkDeviceCreateInfo *features_create_info(const DeviceRequest *request) { return &request->info; }

void features_granted(const DeviceRequest *request, Device *d) {
  d->reported = request->reported;
  d->enabled = request->enabled;
  d->min_subgroup_size = request->min_subgroup_size;
  d->max_subgroup_size = request->max_subgroup_size;
  d->can_require_size = request->can_require_size;
}

void features_free(DeviceRequest *request) {
  if (!request) return;
  free(request->extensions);
  free(request);
}
