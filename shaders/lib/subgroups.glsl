// Neighbouring invocations that add up together: a subgroup, or in the `_plain` modules eight invocations that exchange
// through shared memory, so that these need nothing of subgroups. PLAIN_LANES in vkllm/gpu/kernels.py.
#ifdef PLAIN
#define SUBGROUP_SIZE 8
#define SUBGROUP (gl_LocalInvocationIndex / SUBGROUP_SIZE)
#define N_SUBGROUPS (gl_WorkGroupSize.x / SUBGROUP_SIZE)
#define LANE (gl_LocalInvocationIndex % SUBGROUP_SIZE)
layout(constant_id = 0) const uint EXCHANGED = 64; // the local size
shared float exchanged[EXCHANGED];

// all invocations of the workgroup must come here
float sum_of_subgroup(float v) {
  barrier(); // the last sum has been read
  exchanged[gl_LocalInvocationIndex] = v;
  barrier();
  float sum = 0.0;
  [[unroll]] for (uint i = 0; i < SUBGROUP_SIZE; i++) sum += exchanged[SUBGROUP * SUBGROUP_SIZE + i];
  return sum;
}
#else
#define SUBGROUP_SIZE gl_SubgroupSize
#define SUBGROUP gl_SubgroupID
#define N_SUBGROUPS gl_NumSubgroups
#define LANE gl_SubgroupInvocationID
float sum_of_subgroup(float v) { return subgroupAdd(v); }
#endif
