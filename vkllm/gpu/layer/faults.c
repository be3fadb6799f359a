/* Faults put in by tests: the n-th next call of a kind fails without reaching the driver. */
#include "layer.h"

static Lock faults = PTHREAD_MUTEX_INITIALIZER;
static struct {
  uint32_t device, countdown;
  VkResult result;
} planned[N_INJECT];

/* The n-th next call (1: the next one) of this kind, on a device (0: on any), fails with `result`; n = 0 takes a plan
 * back. Kinds are those of Inject; a hang makes a wait last for its whole time limit. */
EXPORT void vkllm_layer_inject(uint32_t device, uint32_t kind, uint32_t n, int32_t result) {
  if (kind >= N_INJECT) return;
  lock(&faults);
  planned[kind].device = device;
  planned[kind].countdown = n;
  planned[kind].result = result;
  unlock(&faults);
}

/* How many calls of this kind are still to come before the planned one has failed; 0: it has, or none is planned. */
EXPORT uint32_t vkllm_layer_injection_pending(uint32_t kind) {
  if (kind >= N_INJECT) return 0;
  lock(&faults);
  uint32_t n = planned[kind].countdown;
  unlock(&faults);
  return n;
}

VkResult injected(const Device *d, Inject kind) {
  VkResult result = VK_SUCCESS;
  lock(&faults);
  int meant = !planned[kind].device || planned[kind].device == d->id;
  if (meant && planned[kind].countdown && !--planned[kind].countdown) result = planned[kind].result;
  unlock(&faults);
  return result;
}
