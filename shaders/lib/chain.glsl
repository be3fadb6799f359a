// A chain: dispatches without barriers between them. A workgroup waits in the shader until all workgroups of the
// dispatches before it have ended, so that it can start, and load weights, while the last of them are still at work.
// It needs a device that starts the workgroups of dispatches in order, so that those that wait never keep those that
// they wait for from starting (vkllm/gpu/program/chains.py tries that); elsewhere MOST_POLLS is 0, barriers order the
// dispatches, and await_link and end_link do nothing.
//
// What is handed on lies in coherent buffers: each access goes to where all workgroups of the queue see it. When it gets
// there is a matter of order. Vulkan's barrier() orders shared memory only; a fence orders what its own invocation did,
// and what others did before only under the Vulkan memory model, along barriers that order buffers, too. So with
// MEMORY_MODEL workgroup_barrier() is such a barrier, and one invocation releases and acquires for its workgroup. Without,
// every invocation has its fences. (lavapipe 22.3 takes a fence for a barrier, so all invocations must come to it.)
// The counts are read-modify-writes of one word: who reads the last of them is ordered after all.
//
// A wait ends. After MOST_POLLS polls it is given up: the link goes into failed_link, where the following waits find it
// and give up, too, and to the host, which raises an error and uses no result (vkllm/gpu/program/decode.py).
//
// Define CHAIN_BINDING and FAILURE_BINDING before the include; the including file has the constant MOST_POLLS and the
// push constants
//   link        this dispatch's place in the chain, from 1 on; dispatches that run side by side share one
//   n_awaited   workgroups of the link before it; 0: a barrier has ordered it
// begin_step clears the chain, but takes over what the host still holds of a failure. attention_fused counts its parts
// in `ended`, too.
#define LINK_WORDS 8 // links lie in different sectors of memory

layout(std430, binding = CHAIN_BINDING) coherent buffer Chain {
  uint failed_link; // the first whose wait was given up; 0: none
  uint chain_padding[LINK_WORDS - 1];
  uint ended[];
};
layout(std430, binding = FAILURE_BINDING) writeonly buffer Failure { uint failure; }; // the same, for the host

// Buffers, too, that is: what any invocation of the workgroup wrote before, all see after it.
#ifdef MEMORY_MODEL
void workgroup_barrier() {
  controlBarrier(
      gl_ScopeWorkgroup, gl_ScopeWorkgroup, gl_StorageSemanticsBuffer | gl_StorageSemanticsShared,
      gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
}

// by one invocation, after and before a workgroup_barrier: between its workgroup and others
void release() {
  memoryBarrier(gl_ScopeQueueFamily, gl_StorageSemanticsBuffer, gl_SemanticsRelease | gl_SemanticsMakeAvailable);
}

void acquire() {
  memoryBarrier(gl_ScopeQueueFamily, gl_StorageSemanticsBuffer, gl_SemanticsAcquire | gl_SemanticsMakeVisible);
}
#else
void workgroup_barrier() {
  memoryBarrierBuffer();
  barrier();
  memoryBarrierBuffer();
}

void release() {} // all invocations have done it in workgroup_barrier
void acquire() {}
#endif

// for n workgroups of an earlier link
void await_workgroups(uint earlier, uint n) {
  if (gl_LocalInvocationIndex == 0) {
    bool has_ended = false;
    for (uint polls = 1; polls <= MOST_POLLS && !has_ended; polls++) {
      // a plain load in an empty loop is taken out by NVIDIA's compiler, even a volatile one
      has_ended = atomicOr(ended[earlier * LINK_WORDS], 0u) >= n;
      if (polls % 64 == 0 && atomicOr(failed_link, 0u) != 0) break;
    }
    if (!has_ended && atomicCompSwap(failed_link, 0u, link) == 0) failure = link;
    acquire();
  }
  workgroup_barrier();
}

void await_link() {
  if (MOST_POLLS != 0 && n_awaited != 0) await_workgroups(link - 1, n_awaited);
}

// all invocations of the workgroup must come here, once
void end_link() {
  if (MOST_POLLS == 0) return;
  workgroup_barrier();
  if (gl_LocalInvocationIndex == 0) {
    release();
    atomicAdd(ended[link * LINK_WORDS], 1u);
  }
}
