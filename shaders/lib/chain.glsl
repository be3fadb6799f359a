// A chain: dispatches without barriers between them. A workgroup waits in the shader until all workgroups of the
// dispatches before it have ended, so that it can start, and load weights, while the last of them are still at work.
// It needs a device that starts dispatches in order and lets those that wait leave room for those before them
// (vkllm/gpu/program/choices.py says which); elsewhere CHAINED is 0 and barriers order the dispatches.
// Define CHAIN_BINDING before the include; the including file has the constant CHAINED and the push constants
//   link        this dispatch's place in the chain; dispatches that run side by side share one
//   n_awaited   workgroups of the link before it; 0: a barrier has ordered it
// begin_step clears `ended`, where attention_fused counts its parts, too. What a chain hands on must be in coherent buffers: other caches may hold old values.
#define LINK_WORDS 8 // links lie in different sectors of memory

layout(std430, binding = CHAIN_BINDING) coherent buffer Chain { uint ended[]; };

void await_link() {
  if (CHAINED == 0 || n_awaited == 0) return;
  if (gl_LocalInvocationIndex == 0) {
    // a plain load in an empty loop is taken out by NVIDIA's compiler, even a volatile one
    while (atomicOr(ended[(link - 1) * LINK_WORDS], 0u) < n_awaited) {}
    memoryBarrierBuffer();
  }
  barrier();
}

// all invocations of the workgroup must come here, once
void end_link() {
  if (CHAINED == 0) return;
  barrier();
  if (gl_LocalInvocationIndex == 0) {
    memoryBarrierBuffer();
    atomicAdd(ended[link * LINK_WORDS], 1u);
  }
}
