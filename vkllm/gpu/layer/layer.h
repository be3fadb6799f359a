/* What the layer's files share: the tables of live instances and devices, their locks, and the functions
 * that one file has for another. Everything that depends on the operating system is here too.
 *
 * The layer is written for one application, Kompute 0.9.0, and leans on what it does: it creates fences only to
 * wait for one submit, maps only host-coherent memory, and records copies and dispatches only. */
#ifndef VKLLM_LAYER_H
#define VKLLM_LAYER_H

#include <pthread.h>
#include <stdint.h>
#include <vulkan/vulkan.h>

#define EXPORT __attribute__((visibility("default")))
#define THREAD_LOCAL _Thread_local

typedef pthread_mutex_t Lock;
static inline void lock(Lock *l) { pthread_mutex_lock(l); }
static inline void unlock(Lock *l) { pthread_mutex_unlock(l); }
uint64_t clock_ns(void);       /* monotonic */
void sleep_ns(uint64_t duration_ns);

typedef struct { uint64_t a, b; } Hash;
Hash hash_more(Hash hash, const void *data, size_t n_bytes);       /* FNV-1a and another multiplicative hash */
Hash hash_of(const void *data, size_t n_bytes);

/* Non-dispatchable handles are pointers or 64-bit integers, by platform; tables keep them as integers. */
#define HANDLE(h) ((uint64_t)(h))

/* The functions of the next layer (or driver) that the hooks call. */
#define NEXT_FUNCTIONS(F)                                                                                            \
  F(DestroyDevice) F(CreateBuffer) F(DestroyBuffer) F(GetBufferMemoryRequirements) F(AllocateMemory) F(FreeMemory)   \
  F(BindBufferMemory) F(MapMemory) F(UnmapMemory) F(CreateDescriptorPool) F(DestroyDescriptorPool)                   \
  F(AllocateDescriptorSets) F(UpdateDescriptorSets) F(CreateDescriptorSetLayout) F(DestroyDescriptorSetLayout)       \
  F(CreatePipelineLayout) F(DestroyPipelineLayout) F(CreateShaderModule) F(DestroyShaderModule)                      \
  F(CreatePipelineCache) F(DestroyPipelineCache) F(GetPipelineCacheData) F(CreateComputePipelines)                   \
  F(DestroyPipeline) F(CreateCommandPool) F(DestroyCommandPool) F(AllocateCommandBuffers) F(FreeCommandBuffers)      \
  F(BeginCommandBuffer) F(EndCommandBuffer) F(CmdPipelineBarrier) F(CmdDispatch) F(CmdCopyBuffer) F(QueueSubmit)     \
  F(CreateFence) F(WaitForFences) F(ResetFences) F(DestroyFence) F(GetMemoryHostPointerPropertiesEXT)

typedef struct {
#define F(name) PFN_vk##name name;
  NEXT_FUNCTIONS(F)
#undef F
} Next;

typedef struct Instance {
  struct Instance *older;
  void *key;
  VkInstance handle;
  int is_left;                      /* a device of it was left, which may still run */
  PFN_vkGetInstanceProcAddr gipa;
  PFN_vkDestroyInstance destroy;
} Instance;

#define INSTANCE_FUNCTION(instance, name) ((PFN_##name)(instance)->gipa((instance)->handle, #name))

/* Features, in the order of feature_names in features.c; bit n of a mask is feature n. */
typedef enum {
  FP16, INTEGER_DOT_PRODUCT, MEMORY_MODEL, MEMORY_MODEL_DEVICE_SCOPE, COOPERATIVE_MATRIX, SUBGROUP_SIZE_CONTROL,
  COMPUTE_FULL_SUBGROUPS, MEMORY_BUDGET, EXTERNAL_MEMORY_HOST, N_FEATURES
} Feature;
#define BIT(feature) (1ull << (feature))

/* Exported as an array of 64-bit counters; Python's Statistics has the same names in the same order. */
typedef struct {
  uint64_t barriers, dispatches, copies, submits;
  uint64_t blocked_submits;         /* submits that first had to wait for a place in the ring */
  uint64_t pipelines_created, pipelines_shared;
  uint64_t subgroup_sizes_ignored;  /* pipelines whose required subgroup size the device cannot give */
  uint64_t full_subgroups;          /* pipelines asked for that have a required size and full subgroups */
  uint64_t cache_loaded_bytes;      /* pipeline cache read from disk */
  uint64_t cache_saved_bytes;       /* pipeline cache last written to disk */
  uint64_t objects;                 /* that Kompute made and has not destroyed */
  uint64_t allocations;             /* of device memory, each with many buffers */
} Statistics;

typedef struct {
  VkResult result;                  /* the first failure since it was last taken, or VK_SUCCESS */
  const char *call;                 /* "allocate", "submit", ... (static text) */
} Failure;

/* One command buffer: what is recorded in it, and the last submit that uses it. */
typedef struct Recording {
  struct Recording *next;
  VkCommandBuffer handle;
  VkCommandPool pool;
  int compute_ordered;              /* a dispatch with its barrier was recorded, and no copy since */
  int has_work;                     /* there is something for the host to read */
  uint64_t ticket;
} Recording;

/* Submits in flight: ticket t lives in place t % RING. Its fence is the layer's own and is used again. */
#define RING 64
typedef struct {
  VkFence fence;
  VkFence app_fence;                /* Kompute's name of this submit, which no driver knows */
  uint64_t ticket;
  int done, waiters;
} Flight;

typedef struct { uint64_t handle; Hash hash; uint64_t size; } Signature;      /* of a shader module or a layout */
typedef struct { Signature *items; uint32_t n, capacity; } Signatures;
typedef struct SharedPipeline SharedPipeline;

/* Tiers of memory, in the order of TIERS in Python; see tiers.c. */
typedef enum { LOCAL, HOST, READBACK, N_TIERS } Tier;

/* A stretch of a block of memory, free or one buffer's; see blocks.c. */
typedef struct Block Block;
typedef struct Span {
  struct Span *before, *after;      /* neighbours in the block */
  Block *block;
  uint64_t offset, n_bytes;
  VkBuffer buffer;
  int is_free;
} Span;

typedef struct Device {
  struct Device *older;
  void *key;
  VkDevice handle;
  Instance *instance;
  uint32_t id;
  int users;                        /* threads between device_enter and device_leave; guarded by layer.c */
  PFN_vkGetDeviceProcAddr gdpa;
  Next next;
  VkPhysicalDevice gpu;
  uint8_t gpu_uuid[VK_UUID_SIZE];
  uint64_t reported, enabled;       /* feature masks */
  uint32_t min_subgroup_size, max_subgroup_size;                   /* 0 if the device does not tell */
  int can_require_size;             /* whether a compute pipeline can ask for one of them */

  Lock lock;                        /* guards all down to the pipelines; not held while the driver waits */
  Statistics statistics;
  Failure failure;
  Recording *recordings;
  int asynchronous;                 /* __atomic: eval() returns at once; set by Python, read by hooks */
  Flight ring[RING];
  uint64_t last_ticket;             /* of the last submit; 0: none */
  uint64_t done_through;            /* every submit up to this ticket is done */
  uint64_t failed_ticket;           /* first submit that failed since the failure was taken; 0: none */
  VkResult failed_result;
  int lost;                         /* the driver, or a test, said so: every later wait and submit fails */
  int hung;                         /* a submit outlived the layer's patience: no more waits, and nothing is freed */

  Lock pipelines_lock;              /* guards what follows; held while a pipeline is compiled */
  Signatures modules, set_layouts, pipeline_layouts;
  SharedPipeline *pipelines;
  uint32_t pipelines_kept, pipelines_to_keep; /* without users: how many there are, and may be */
  VkPipelineCache cache;
  char *cache_file;                 /* NULL: the cache is not kept on disk */
  uint64_t cache_known_bytes;       /* size of what the file holds */

  VkPhysicalDeviceMemoryProperties memory;
  PFN_vkGetPhysicalDeviceMemoryProperties2 memory_properties2;
  uint64_t max_allocation_bytes;
  uint64_t import_alignment;        /* of addresses and sizes of host memory that is imported; 0: none can be */
  uint64_t vram_limit, ram_limit;   /* __atomic: most that a heap is taken to have */
  uint64_t allocated[VK_MAX_MEMORY_HEAPS], used[VK_MAX_MEMORY_HEAPS];      /* __atomic: bytes of blocks, of buffers */
  Lock memory_lock;                 /* guards the blocks; held while the driver allocates */
  Block *blocks;
} Device;

/* layer.c */
Instance *instance_of(void *dispatchable);
Device *device_of(void *dispatchable);
Device *device_enter(uint32_t id);  /* by number, kept alive until device_leave; NULL: no such device */
void device_leave(Device *d);
/* Remembers a first failure of a device, or of none (NULL), and returns its result. */
VkResult fail(Device *d, const char *call, VkResult result);
/* Counts an object that Kompute has made (returns VK_SUCCESS) or destroyed. */
VkResult object_made(Device *d);
void object_gone(Device *d);
/* Bytes that this process has allocated in a heap of a device's GPU, whichever device it opened for it. */
uint64_t allocated_of_gpu(const Device *d, uint32_t heap);

/* features.c */
typedef struct DeviceRequest DeviceRequest;
DeviceRequest *features_request(Instance *instance, VkPhysicalDevice gpu, const VkDeviceCreateInfo *wanted);
const VkDeviceCreateInfo *features_create_info(const DeviceRequest *request);
void features_granted(const DeviceRequest *request, Device *d);
void features_free(DeviceRequest *request);

/* faults.c */
typedef enum {
  INJECT_ALLOCATE, INJECT_SUBMIT, INJECT_WAIT, INJECT_HANG, INJECT_CREATE_BUFFER, INJECT_PIPELINE, INJECT_DEVICE,
  INJECT_BLOCK, INJECT_BIND, INJECT_MAP, INJECT_DESCRIPTOR_POOL, INJECT_DESCRIPTOR_SETS, INJECT_SET_LAYOUT,
  INJECT_PIPELINE_LAYOUT, INJECT_MODULE, INJECT_COMMAND_POOL, INJECT_COMMAND_BUFFER, INJECT_BEGIN, INJECT_END,
  INJECT_FENCE, INJECT_IMPORT, INJECT_SETTLE, N_INJECT
} Inject;
/* VK_SUCCESS, or what a test put in its place for this call. d may have no number yet. */
VkResult injected(const Device *d, Inject call);

/* tiers.c */
int32_t vkllm_layer_choose_type(const VkPhysicalDeviceMemoryProperties *memory, const uint64_t *room, uint32_t tier,
                                uint32_t type_bits, uint64_t n_bytes);
Tier tier_of_type(const Device *d, uint32_t type);
void heap_rooms(Device *d, uint64_t room[VK_MAX_MEMORY_HEAPS]);
void heaps_open(Device *d, Instance *instance, VkPhysicalDevice gpu, const VkPhysicalDeviceProperties *properties);

/* blocks.c */
VkResult span_allocate(Device *d, Tier tier, const VkMemoryRequirements *required, Span **out);
VkResult span_import(Device *d, void *address, uint64_t n_bytes, uint32_t type_bits, Span **out);
VkResult span_bind(Device *d, Span *s, VkBuffer buffer);
VkResult span_map(Device *d, Span *s, void **out);
uint32_t span_type(const Span *s);
void span_free(Device *d, Span *s);
void blocks_close(Device *d);

/* descriptors.c: what this thread's Algorithm has made before its pipeline. */
typedef struct {
  VkDescriptorPool pool;
  VkDescriptorSetLayout set_layout;
  VkShaderModule module;
  VkPipelineLayout layout;
} Unfinished;
Unfinished *unfinished_algorithm(void);
void unfinished_destroy(VkDevice device);

/* submits.c */
/* Waits for all submits, or those up to a ticket, before something that they may use goes away. 0: they may still run
 * after a long wait, and it has to stay. */
int settle(Device *d);
int settle_through(Device *d, uint64_t ticket);
void submits_close(Device *d);

/* commands.c */
Recording *recording_of(Device *d, VkCommandBuffer commands);      /* call with d->lock held; NULL: unknown */
void commands_close(Device *d);

/* pipelines.c */
void pipelines_close(Device *d);

/* diskcache.c */
void cache_open(Device *d, const VkPhysicalDeviceProperties *properties);
void cache_close(Device *d);

/* Every device function that the layer stands before. Each hook has the type of the function it replaces. */
#define HOOKS(F)                                                                                                    \
  /* memory.c */                                                                                                    \
  F(CreateBuffer) F(DestroyBuffer) F(GetBufferMemoryRequirements) F(AllocateMemory) F(FreeMemory)                   \
  F(BindBufferMemory) F(MapMemory) F(UnmapMemory) F(FlushMappedMemoryRanges)                                        \
  /* descriptors.c */                                                                                               \
  F(CreateDescriptorPool) F(DestroyDescriptorPool) F(AllocateDescriptorSets) F(UpdateDescriptorSets)                \
  /* pipelines.c */                                                                                                 \
  F(CreateDescriptorSetLayout) F(DestroyDescriptorSetLayout) F(CreatePipelineLayout) F(DestroyPipelineLayout)       \
  F(CreateShaderModule) F(DestroyShaderModule) F(CreateComputePipelines) F(DestroyPipeline)                         \
  /* diskcache.c */                                                                                                 \
  F(CreatePipelineCache) F(DestroyPipelineCache)                                                                    \
  /* commands.c */                                                                                                  \
  F(CreateCommandPool) F(DestroyCommandPool) F(AllocateCommandBuffers) F(FreeCommandBuffers) F(BeginCommandBuffer)  \
  F(EndCommandBuffer) F(CmdPipelineBarrier) F(CmdDispatch) F(CmdCopyBuffer)                                         \
  /* submits.c */                                                                                                   \
  F(QueueSubmit) F(CreateFence) F(WaitForFences) F(DestroyFence)

#define F(name) __typeof__(vk##name) hook_##name;
HOOKS(F)
#undef F
#endif
