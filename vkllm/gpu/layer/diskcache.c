/* The pipeline cache: one for each device, kept on disk between runs.
 *
 * Kompute makes an empty cache for each pipeline and throws it away after; it gets this one instead. The file is a
 * magic word, the size and the hash of the driver's data, then the data. Its name holds vendor, device, driver
 * version and pipelineCacheUUID, and it is written beside itself and renamed, so a reader sees the old one or the
 * new one. A file that is damaged or another driver's is not used, and written anew. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "layer.h"

#define MAGIC 0x314543414c4c4b56ull                  /* "VKLLACE1" */

static Lock folder_lock = PTHREAD_MUTEX_INITIALIZER;
static char *folder;                                 /* for devices made from now on; NULL: nothing on disk */

/* The folder of the pipeline caches of devices made from now on (it has to exist); NULL or "": none is kept. */
EXPORT void vkllm_layer_set_pipeline_cache(const char *path) {
  lock(&folder_lock);
  free(folder);
  folder = path && *path ? strdup(path) : NULL;
  unlock(&folder_lock);
}

static char *file_name(const VkPhysicalDeviceProperties *p) {
  char uuid[2 * VK_UUID_SIZE + 1];
  for (size_t i = 0; i < VK_UUID_SIZE; i++) snprintf(uuid + 2 * i, 3, "%02x", p->pipelineCacheUUID[i]);
  lock(&folder_lock);
  size_t n = folder ? strlen(folder) + 128 : 0;
  char *name = n ? malloc(n) : NULL;
  if (name)
    snprintf(name, n, "%s/pipelines-%04x-%04x-%08x-%s.bin", folder, p->vendorID, p->deviceID, p->driverVersion, uuid);
  unlock(&folder_lock);
  return name;
}

/* The driver's data in the file, to be freed; NULL: there is none that can be trusted. */
static void *read_file(const char *name, const VkPhysicalDeviceProperties *p, size_t *n_bytes) {
  FILE *file = fopen(name, "rb");
  if (!file) return NULL;
  struct {
    uint64_t magic, size;
    Hash hash;
  } head;
  VkPipelineCacheHeaderVersionOne own;
  void *data = NULL;
  if (fread(&head, sizeof head, 1, file) == 1 && head.magic == MAGIC && head.size >= sizeof own &&
      head.size <= 1u << 30)
    data = malloc(head.size);
  int sound = data && fread(data, head.size, 1, file) == 1 && fgetc(file) == EOF;
  fclose(file);
  if (sound) {
    Hash hash = hash_of(data, head.size);
    memcpy(&own, data, sizeof own);
    sound = !memcmp(&hash, &head.hash, sizeof hash) && own.headerVersion == VK_PIPELINE_CACHE_HEADER_VERSION_ONE &&
            own.vendorID == p->vendorID && own.deviceID == p->deviceID &&
            !memcmp(own.pipelineCacheUUID, p->pipelineCacheUUID, VK_UUID_SIZE);
  }
  if (!sound) {
    free(data);
    return NULL;
  }
  *n_bytes = head.size;
  return data;
}

/* d: so that two devices of a process that keep the same file do not write the same temporary one. */
static int write_file(const Device *d, const char *name, const void *data, size_t n_bytes) {
  size_t n = strlen(name) + 48;
  char *beside = malloc(n);
  if (!beside) return 0;
  snprintf(beside, n, "%s.%ld.%u", name, (long)getpid(), d->id);
  struct {
    uint64_t magic, size;
    Hash hash;
  } head = {MAGIC, n_bytes, hash_of(data, n_bytes)};
  FILE *file = fopen(beside, "wb");
  int written = file && fwrite(&head, sizeof head, 1, file) == 1 && fwrite(data, n_bytes, 1, file) == 1;
  if (file) written &= !fclose(file);
  written = written && !rename(beside, name);
  if (file && !written) remove(beside);
  free(beside);
  return written;
}

void cache_open(Device *d, const VkPhysicalDeviceProperties *properties) {
  d->cache_file = file_name(properties);
  size_t n_bytes = 0;
  void *data = d->cache_file ? read_file(d->cache_file, properties, &n_bytes) : NULL;
  VkPipelineCacheCreateInfo info = {
      .sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO, .initialDataSize = n_bytes, .pInitialData = data};
  VkResult result = d->next.CreatePipelineCache(d->handle, &info, NULL, &d->cache);
  if (result && data) {                              /* the driver found fault with it */
    info.initialDataSize = n_bytes = 0;
    result = d->next.CreatePipelineCache(d->handle, &info, NULL, &d->cache);
  }
  free(data);
  if (result) d->cache = VK_NULL_HANDLE;             /* Kompute's own caches do then */
  d->cache_known_bytes = d->statistics.cache_loaded_bytes = n_bytes;
}

/* Writes the cache to its file if it grew since it was read or written; returns 0 if that failed. */
static int save(Device *d) {
  int saved = 1;
  size_t n_bytes = 0;
  lock(&d->pipelines_lock);
  if (d->cache && d->cache_file && !d->next.GetPipelineCacheData(d->handle, d->cache, &n_bytes, NULL) &&
      n_bytes > d->cache_known_bytes) {
    void *data = malloc(n_bytes);
    saved = data && !d->next.GetPipelineCacheData(d->handle, d->cache, &n_bytes, data) &&
            write_file(d, d->cache_file, data, n_bytes);
    free(data);
    if (saved) {
      d->cache_known_bytes = n_bytes;
      lock(&d->lock);
      d->statistics.cache_saved_bytes = n_bytes;
      unlock(&d->lock);
    }
  }
  unlock(&d->pipelines_lock);
  return saved;
}

/* Writes the pipeline cache of a device to disk if it grew; 0: it could not be written. Also done when the device
 * is destroyed. */
EXPORT int32_t vkllm_layer_save_pipeline_cache(uint32_t device) {
  Device *d = device_enter(device);
  if (!d) return 0;
  int saved = save(d);
  device_leave(d);
  return saved;
}

void cache_close(Device *d) {
  save(d);
  if (d->cache) d->next.DestroyPipelineCache(d->handle, d->cache, NULL);
  free(d->cache_file);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreatePipelineCache(VkDevice device, const VkPipelineCacheCreateInfo *info,
                                                        const VkAllocationCallbacks *alloc, VkPipelineCache *out) {
  Device *d = device_of(device);
  if (d->cache) {
    *out = d->cache;
    return VK_SUCCESS;
  }
  VkResult result = d->next.CreatePipelineCache(device, info, alloc, out);
  if (!result) return result;
  *out = VK_NULL_HANDLE;                             /* a pipeline can do without */
  return fail(d, "create_pipeline_cache", result);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyPipelineCache(VkDevice device, VkPipelineCache cache,
                                                     const VkAllocationCallbacks *alloc) {
  Device *d = device_of(device);
  if (cache != d->cache) d->next.DestroyPipelineCache(device, cache, alloc);
}
