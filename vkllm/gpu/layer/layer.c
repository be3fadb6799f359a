/* The layer itself: how the Vulkan loader finds it, and the tables of live instances and devices.
 *
 * A layer stands between an application and the driver. The loader calls vkNegotiateLoaderLayerInterfaceVersion,
 * gets the two functions that look up names, and from then on every call of Kompute that HOOKS names goes through
 * the hook of that name in memory.c, descriptors.c, pipelines.c, commands.c or submits.c; all others go straight on.
 *
 * What is exported to Python (ctypes) starts with vkllm_layer_ and uses plain C types. A device is named by its
 * number: 1 for the first that this process made, then 2, ...; numbers are never used again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>

#include "layer.h"

static Lock tables = PTHREAD_MUTEX_INITIALIZER;      /* guards the two lists and the failure outside devices */
static Instance *instances;
static Device *devices;                              /* newest first */
static uint32_t n_devices_made;
static THREAD_LOCAL uint32_t made_here;              /* number of the last device that this thread made */
static Failure no_device_failure;                    /* of vkCreateInstance and vkCreateDevice */
static uint64_t n_abandoned;                         /* objects that Kompute had not destroyed with their device */

/* Every dispatchable handle starts with a pointer to the loader's table, which all handles of an instance
 * (or of a device) share. */
static void *key_of(void *dispatchable) { return *(void **)dispatchable; }

Instance *instance_of(void *dispatchable) {
  void *key = key_of(dispatchable);
  lock(&tables);
  Instance *i = instances;
  while (i && i->key != key) i = i->older;
  unlock(&tables);
  return i;
}

Device *device_of(void *dispatchable) {
  void *key = key_of(dispatchable);
  lock(&tables);
  Device *d = devices;
  while (d && d->key != key) d = d->older;
  unlock(&tables);
  return d;
}

Device *device_enter(uint32_t id) {
  lock(&tables);
  Device *d = devices;
  while (d && d->id != id) d = d->older;
  if (d) d->users++;
  unlock(&tables);
  return d;
}

void device_leave(Device *d) {
  lock(&tables);
  d->users--;
  unlock(&tables);
}

VkResult fail(Device *d, const char *call, VkResult result) {
  Lock *guard = d ? &d->lock : &tables;
  Failure *failure = d ? &d->failure : &no_device_failure;
  lock(guard);
  if (failure->result == VK_SUCCESS) *failure = (Failure){result, call};
  if (d && result == VK_ERROR_DEVICE_LOST) d->lost = 1;
  unlock(guard);
  return result;
}

VkResult object_made(Device *d) {
  __atomic_fetch_add(&d->statistics.objects, 1, __ATOMIC_RELAXED);
  return VK_SUCCESS;
}

void object_gone(Device *d) { __atomic_fetch_sub(&d->statistics.objects, 1, __ATOMIC_RELAXED); }

uint64_t allocated_of_gpu(const Device *d, uint32_t heap) {
  uint64_t sum = 0;
  lock(&tables);
  for (Device *other = devices; other; other = other->older)
    if (!memcmp(other->gpu_uuid, d->gpu_uuid, VK_UUID_SIZE))
      sum += __atomic_load_n(&other->allocated[heap], __ATOMIC_RELAXED);
  unlock(&tables);
  return sum;
}

/* Objects of this process that were still there when their device was destroyed. */
EXPORT uint64_t vkllm_layer_abandoned(void) {
  lock(&tables);
  uint64_t n = n_abandoned;
  unlock(&tables);
  return n;
}

/* The number of the last device that this thread made; 0: the loader did not use this layer, or it is gone. */
EXPORT uint32_t vkllm_layer_open_device(void) {
  Device *d = made_here ? device_enter(made_here) : NULL;
  if (!d) return 0;
  device_leave(d);
  return made_here;
}

/* The deviceUUID of a device's GPU, VK_UUID_SIZE bytes; zeros if the driver tells none. 0: no such device. */
EXPORT int32_t vkllm_layer_gpu_uuid(uint32_t device, uint8_t *out) {
  Device *d = device_enter(device);
  if (!d) return 0;
  memcpy(out, d->gpu_uuid, VK_UUID_SIZE);
  device_leave(d);
  return 1;
}

/* Takes (and forgets) the first failure of a device, or of no device for 0: returns its VkResult and writes the
 * name of the call that failed. A lost device stays lost. */
EXPORT int32_t vkllm_layer_take_failure(uint32_t device, char *call, uint32_t call_bytes) {
  Failure taken = {VK_SUCCESS, ""};
  if (device) {
    Device *d = device_enter(device);
    if (!d) return VK_SUCCESS;
    lock(&d->lock);
    taken = d->failure;
    d->failure = (Failure){VK_SUCCESS, ""};
    d->failed_ticket = 0;
    unlock(&d->lock);
    device_leave(d);
  } else {
    lock(&tables);
    taken = no_device_failure;
    no_device_failure = (Failure){VK_SUCCESS, ""};
    unlock(&tables);
  }
  snprintf(call, call_bytes, "%s", taken.call ? taken.call : "");
  return taken.result;
}

/* Feature masks of a device: what it reports (less what VKLLM_LAYER_HIDE_FEATURES hides) and what was enabled. */
EXPORT uint64_t vkllm_layer_features(uint32_t device, int32_t enabled) {
  Device *d = device_enter(device);
  if (!d) return 0;
  uint64_t mask = enabled ? d->enabled : d->reported;
  device_leave(d);
  return mask;
}

/* Copies the counters of a device, in the order of Statistics, and returns how many there are; 0: no such device. */
EXPORT uint32_t vkllm_layer_statistics(uint32_t device, uint64_t *counters, uint32_t n) {
  Device *d = device_enter(device);
  if (!d) return 0;
  lock(&d->lock);
  Statistics now = d->statistics;
  unlock(&d->lock);
  device_leave(d);
  uint32_t n_counters = sizeof now / sizeof(uint64_t);
  memcpy(counters, &now, (n < n_counters ? n : n_counters) * sizeof(uint64_t));
  return n_counters;
}

/* The loader hands each layer the next one in a list; a layer has to take itself off it. */
static VkLayerInstanceLink *take_instance_link(const VkInstanceCreateInfo *info) {
  VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)info->pNext;
  while (link &&
         !(link->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO))
    link = (VkLayerInstanceCreateInfo *)link->pNext;
  if (!link) return NULL;
  VkLayerInstanceLink *own = link->u.pLayerInfo;
  link->u.pLayerInfo = own->pNext;
  return own;
}

static VkLayerDeviceLink *take_device_link(const VkDeviceCreateInfo *info) {
  VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)info->pNext;
  while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO))
    link = (VkLayerDeviceCreateInfo *)link->pNext;
  if (!link) return NULL;
  VkLayerDeviceLink *own = link->u.pLayerInfo;
  link->u.pLayerInfo = own->pNext;
  return own;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *alloc, VkInstance *out) {
  VkLayerInstanceLink *next = take_instance_link(info);
  PFN_vkCreateInstance create = NULL;
  if (next) create = (PFN_vkCreateInstance)next->pfnNextGetInstanceProcAddr(NULL, "vkCreateInstance");
  if (!create) return fail(NULL, "create_instance", VK_ERROR_INITIALIZATION_FAILED);
  /* Kompute asks for Vulkan 1.1 at most; the features of a 1.3 device need a 1.3 instance. */
  VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO};
  if (info->pApplicationInfo) app = *info->pApplicationInfo;
  if (app.apiVersion < VK_API_VERSION_1_3) app.apiVersion = VK_API_VERSION_1_3;
  VkInstanceCreateInfo raised = *info;
  raised.pApplicationInfo = &app;
  VkResult result = create(&raised, alloc, out);
  if (result) {
    fprintf(stderr, "vkllm layer: vkCreateInstance failed with VkResult %d\n", result);
    return fail(NULL, "create_instance", result);
  }
  Instance *i = calloc(1, sizeof *i);
  if (!i) return fail(NULL, "create_instance", VK_ERROR_OUT_OF_HOST_MEMORY);
  *i = (Instance){.key = key_of(*out), .handle = *out, .gipa = next->pfnNextGetInstanceProcAddr};
  i->destroy = (PFN_vkDestroyInstance)i->gipa(*out, "vkDestroyInstance");
  lock(&tables);
  i->older = instances;
  instances = i;
  unlock(&tables);
  return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL destroy_instance(VkInstance instance, const VkAllocationCallbacks *alloc) {
  Instance *i = instance ? instance_of(instance) : NULL;
  if (!i || i->is_left) return;
  lock(&tables);
  Instance **at = &instances;
  while (*at != i) at = &(*at)->older;
  *at = i->older;
  unlock(&tables);
  i->destroy(instance, alloc);
  free(i);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice gpu, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *alloc, VkDevice *out) {
  Instance *instance = instance_of(gpu);
  VkLayerDeviceLink *next = take_device_link(info);
  if (!instance || !next) return fail(NULL, "create_device", VK_ERROR_INITIALIZATION_FAILED);
  PFN_vkCreateDevice create = (PFN_vkCreateDevice)next->pfnNextGetInstanceProcAddr(instance->handle, "vkCreateDevice");
  PFN_vkGetDeviceProcAddr gdpa = next->pfnNextGetDeviceProcAddr;
  Device *d = calloc(1, sizeof *d);
  DeviceRequest *request = features_request(instance, gpu, info);
  VkResult result = VK_ERROR_OUT_OF_HOST_MEMORY;
  if (create && d && request) result = injected(d, INJECT_DEVICE);
  if (create && d && request && !result) result = create(gpu, features_create_info(request), alloc, out);
  if (result) {
    /* Kompute goes on with a null device and the loader ends the process, so say why while there is time. */
    fprintf(stderr, "vkllm layer: vkCreateDevice failed with VkResult %d\n", result);
    features_free(request);
    free(d);
    return fail(NULL, "create_device", result);
  }
  d->key = key_of(*out);
  d->handle = *out;
  d->instance = instance;
  pthread_mutex_init(&d->lock, NULL);
  pthread_mutex_init(&d->pipelines_lock, NULL);
  pthread_mutex_init(&d->memory_lock, NULL);
#define F(name) d->next.name = (PFN_vk##name)gdpa(*out, "vk" #name);
  NEXT_FUNCTIONS(F)
#undef F
  d->gdpa = gdpa;
  features_granted(request, d);
  features_free(request);
  VkPhysicalDeviceProperties properties;
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceProperties)(gpu, &properties);
  heaps_open(d, instance, gpu, &properties);
  cache_open(d, &properties);
  lock(&tables);
  d->id = made_here = ++n_devices_made;
  d->older = devices;
  devices = d;
  unlock(&tables);
  return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL destroy_device(VkDevice device, const VkAllocationCallbacks *alloc) {
  Device *d = device ? device_of(device) : NULL;
  if (!d) return;
  lock(&tables);
  Device **at = &devices;
  while (*at != d) at = &(*at)->older;
  *at = d->older;                                    /* from here no thread can enter it */
  n_abandoned += d->statistics.objects;
  while (d->users) {                                 /* but some may still be inside a wait */
    unlock(&tables);
    sleep_ns(100000);
    lock(&tables);
  }
  unlock(&tables);
  if (!settle(d)) {
    d->instance->is_left = 1;
    return;
  }
  submits_close(d);
  pipelines_close(d);
  cache_close(d);
  commands_close(d);
  blocks_close(d);
  d->next.DestroyDevice(device, alloc);
  pthread_mutex_destroy(&d->lock);
  pthread_mutex_destroy(&d->pipelines_lock);
  pthread_mutex_destroy(&d->memory_lock);
  free(d);
}

static PFN_vkVoidFunction own_function(const char *name);

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_function(VkDevice device, const char *name) {
  PFN_vkVoidFunction own = own_function(name);
  Device *d = own || !device ? NULL : device_of(device);
  return d ? d->gdpa(device, name) : own;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance_function(VkInstance instance, const char *name) {
  PFN_vkVoidFunction own = own_function(name);
  Instance *i = own || !instance ? NULL : instance_of(instance);
  return i ? i->gipa(instance, name) : own;
}

static PFN_vkVoidFunction own_function(const char *name) {
  static const struct { const char *name; PFN_vkVoidFunction function; } own[] = {
    {"vkGetInstanceProcAddr", (PFN_vkVoidFunction)get_instance_function},
    {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)get_device_function},
    {"vkCreateInstance", (PFN_vkVoidFunction)create_instance},
    {"vkDestroyInstance", (PFN_vkVoidFunction)destroy_instance},
    {"vkCreateDevice", (PFN_vkVoidFunction)create_device},
    {"vkDestroyDevice", (PFN_vkVoidFunction)destroy_device},
#define F(name) {"vk" #name, (PFN_vkVoidFunction)hook_##name},
    HOOKS(F)
#undef F
  };
  for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
    if (!strcmp(name, own[i].name)) return own[i].function;
  return NULL;
}

EXPORT VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *v) {
  if (v->loaderLayerInterfaceVersion < 2) return VK_ERROR_INITIALIZATION_FAILED;
  v->loaderLayerInterfaceVersion = 2;
  v->pfnGetInstanceProcAddr = get_instance_function;
  v->pfnGetDeviceProcAddr = get_device_function;
  v->pfnGetPhysicalDeviceProcAddr = NULL;
  return VK_SUCCESS;
}
