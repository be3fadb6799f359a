/* Submits and waits: tickets and the asynchronous mode.
 *
 * Each submit gets a ticket (1, 2, ... for each device) and a fence of the layer's own. Kompute's fence, made and
 * destroyed for each eval(), only names the submit when Kompute waits for it, so it is a number that no driver knows: to
 * make and to destroy one took 0.4 ms each on an H200 (driver 580.159.04), a submit 0.01. In asynchronous mode that wait
 * returns at once, so eval() does, and Python waits for the ticket through vkllm_layer_wait, which ctypes calls
 * with the GIL released. Up to RING submits are in flight; one more waits for the oldest.
 *
 * A command buffer may be submitted again while it runs: each of its dispatches is ordered after all earlier submits, so
 * the next step never waits for the host to see that the last one is done.
 *
 * What was handed to a submit must not go away while it runs: the hooks that free things call settle first. Where that
 * wait has no end, they leave the things, as the device is left: to destroy what a GPU uses can end the process at once,
 * and what is left ends with the process anyway. */
#include "layer.h"

/* Longest wait that the layer does by itself (a full ring, freeing what is in use): far above any submit that a
 * driver lets live, and an end where a wait without limit would hang the process. */
#define PATIENCE_NS (60ull * 1000000000u)

/* 1: a device's eval() returns at once, wait with vkllm_layer_wait; 0 (at the start): eval() waits. */
EXPORT void vkllm_layer_asynchronous(uint32_t device, int32_t on) {
  Device *d = device_enter(device);
  if (!d) return;
  __atomic_store_n(&d->asynchronous, on != 0, __ATOMIC_RELAXED);
  device_leave(d);
}

static uint64_t later(uint64_t duration_ns) {
  uint64_t now = clock_ns();
  return duration_ns > UINT64_MAX - now ? UINT64_MAX : now + duration_ns;
}

/* Waits until each submit up to `ticket` is done or the clock reads `deadline`. Call with d->lock held; it is let go
 * while the driver waits. */
static VkResult wait_through(Device *d, uint64_t ticket, uint64_t deadline) {
  if (ticket > d->last_ticket) ticket = d->last_ticket;
  while (d->done_through < ticket) {
    Flight *oldest = &d->ring[(d->done_through + 1) % RING];
    if (!oldest->done) {
      uint64_t now = clock_ns();
      oldest->waiters++;
      unlock(&d->lock);
      VkResult result =
          d->next.WaitForFences(d->handle, 1, &oldest->fence, VK_TRUE, now < deadline ? deadline - now : 0);
      lock(&d->lock);
      oldest->waiters--;
      if (result) return result;
      oldest->done = 1;
    }
    /* Another thread may have come here first, and gone on. */
    while (d->done_through < d->last_ticket && d->ring[(d->done_through + 1) % RING].done) d->done_through++;
  }
  return VK_SUCCESS;
}

/* As wait_through, but not for ever; a device that hangs costs this wait once, not once for each thing it holds. It
 * stays hung even if it ends its submits later: by then it holds things that were left. */
static VkResult wait_patiently(Device *d, uint64_t ticket) {
  if (d->hung) return VK_TIMEOUT;
  VkResult result = injected(d, INJECT_SETTLE);
  if (!result) result = wait_through(d, ticket, later(PATIENCE_NS));
  if (result && result != VK_ERROR_DEVICE_LOST) d->hung = 1;
  return result;
}

/* A lost device runs nothing any more. */
int settle_through(Device *d, uint64_t ticket) {
  lock(&d->lock);
  VkResult result = wait_patiently(d, ticket);
  unlock(&d->lock);
  if (result) fail(d, "wait", result);
  return !result || result == VK_ERROR_DEVICE_LOST;
}

int settle(Device *d) { return settle_through(d, UINT64_MAX); }

/* Waits for all submits of a device: 1 if they are done, so it may be destroyed; 0 if it is to be left as it is. */
EXPORT int32_t vkllm_layer_settle(uint32_t device) {
  Device *d = device_enter(device);
  if (!d) return 1;
  int settled = settle(d);
  device_leave(d);
  return settled;
}

/* The ticket of a device's last submit; 0: there was none. */
EXPORT uint64_t vkllm_layer_ticket(uint32_t device) {
  Device *d = device_enter(device);
  if (!d) return 0;
  lock(&d->lock);
  uint64_t ticket = d->last_ticket;
  unlock(&d->lock);
  device_leave(d);
  return ticket;
}

static VkResult wait_for(Device *d, uint64_t ticket, uint64_t timeout_ns) {
  uint64_t deadline = later(timeout_ns);
  VkResult result = injected(d, INJECT_WAIT);
  if (!result && injected(d, INJECT_HANG)) {
    sleep_ns(timeout_ns);
    result = VK_TIMEOUT;
  }
  if (result) return result < 0 ? fail(d, "wait", result) : result;
  lock(&d->lock);
  if (d->lost)
    result = VK_ERROR_DEVICE_LOST;
  else if (d->failed_ticket && d->failed_ticket <= ticket)
    result = d->failed_result;
  else {
    result = wait_through(d, ticket, deadline);
    if (!result && d->failed_ticket && d->failed_ticket <= ticket) result = d->failed_result;
  }
  unlock(&d->lock);
  return result < 0 ? fail(d, "wait", result) : result;
}

/* Waits until a submit and all before it are done: VK_SUCCESS, VK_TIMEOUT after timeout_ns, or at once the error of
 * a lost device or of a submit among them that failed. VK_ERROR_INITIALIZATION_FAILED: no such device. */
EXPORT int32_t vkllm_layer_wait(uint32_t device, uint64_t ticket, uint64_t timeout_ns) {
  Device *d = device_enter(device);
  if (!d) return VK_ERROR_INITIALIZATION_FAILED;
  VkResult result = wait_for(d, ticket, timeout_ns);
  device_leave(d);
  return result;
}

/* A place in the ring for the next ticket, with an unsignalled fence. Call with d->lock held. If it fails, `out` is the
 * place without a fence, or NULL if none is free. */
static VkResult next_place(Device *d, Flight **out) {
  Flight *place = &d->ring[(d->last_ticket + 1) % RING];
  *out = NULL;
  if (d->last_ticket - d->done_through >= RING) {
    d->statistics.blocked_submits++;
    VkResult result = wait_patiently(d, d->last_ticket + 1 - RING);
    if (result) return result;
  }
  while (place->waiters) {                           /* a thread has yet to notice that its wait is over */
    unlock(&d->lock);
    sleep_ns(10000);
    lock(&d->lock);
  }
  *out = place;
  if (place->fence) return d->next.ResetFences(d->handle, 1, &place->fence);
  VkFenceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
  VkResult result = injected(d, INJECT_FENCE);
  return result ? result : d->next.CreateFence(d->handle, &info, NULL, &place->fence);
}

VKAPI_ATTR VkResult VKAPI_CALL hook_QueueSubmit(VkQueue queue, uint32_t n, const VkSubmitInfo *submits, VkFence fence) {
  Device *d = device_of(queue);
  VkResult result = injected(d, INJECT_SUBMIT);
  lock(&d->lock);
  Flight *place = NULL;
  VkResult placed = next_place(d, &place);
  if (!result) result = placed;
  if (!result && d->lost) result = VK_ERROR_DEVICE_LOST;
  if (!result) result = d->next.QueueSubmit(queue, n, submits, place->fence);
  if (place) {
    d->last_ticket++;
    place->ticket = d->last_ticket;
    place->app_fence = fence;
    place->done = result != VK_SUCCESS;              /* a submit that failed will never signal its fence */
  }
  uint64_t ticket = d->last_ticket;
  if (result && !d->failed_ticket) {
    d->failed_ticket = ticket;
    d->failed_result = result;
  }
  d->statistics.submits++;
  for (uint32_t i = 0; i < n && !result; i++)
    for (uint32_t c = 0; c < submits[i].commandBufferCount; c++) {
      Recording *r = recording_of(d, submits[i].pCommandBuffers[c]);
      if (r) r->ticket = ticket;
    }
  unlock(&d->lock);
  return result ? fail(d, "submit", result) : result;
}

/* Kompute waits for one fence, of a submit. A fence that is in no place of the ring was waited for by others. */
VKAPI_ATTR VkResult VKAPI_CALL hook_WaitForFences(VkDevice device, uint32_t n, const VkFence *fences, VkBool32 all,
                                                  uint64_t timeout_ns) {
  (void)all;
  Device *d = device_of(device);
  if (__atomic_load_n(&d->asynchronous, __ATOMIC_RELAXED)) return VK_SUCCESS;
  uint64_t ticket = 0;
  lock(&d->lock);
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t p = 0; p < RING; p++)
      if (d->ring[p].app_fence == fences[i] && d->ring[p].ticket > ticket) ticket = d->ring[p].ticket;
  unlock(&d->lock);
  return ticket ? wait_for(d, ticket, timeout_ns) : VK_SUCCESS;
}

VKAPI_ATTR VkResult VKAPI_CALL hook_CreateFence(VkDevice device, const VkFenceCreateInfo *info,
                                                const VkAllocationCallbacks *alloc, VkFence *out) {
  (void)info, (void)alloc;
  static uint64_t last_name;
  Device *d = device_of(device);
  VkResult result = injected(d, INJECT_FENCE);
  if (result) return fail(d, "create_fence", result);
  *out = (VkFence)(uintptr_t)__atomic_add_fetch(&last_name, 1, __ATOMIC_RELAXED);
  return object_made(d);
}

VKAPI_ATTR void VKAPI_CALL hook_DestroyFence(VkDevice device, VkFence fence, const VkAllocationCallbacks *alloc) {
  (void)alloc;
  Device *d = device_of(device);
  if (!fence) return;
  lock(&d->lock);
  for (uint32_t p = 0; p < RING; p++)
    if (d->ring[p].app_fence == fence) d->ring[p].app_fence = VK_NULL_HANDLE;
  unlock(&d->lock);
  object_gone(d);
}

void submits_close(Device *d) {
  for (uint32_t p = 0; p < RING; p++)
    if (d->ring[p].fence) d->next.DestroyFence(d->handle, d->ring[p].fence, NULL);
}
