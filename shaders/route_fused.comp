// route_fused: norm, the product with a router's matrix, and route for one token, in one dispatch
// bindings: weights source norm_weight bias logits selection_bias routes chain failure
// constants: local_size n_experts n_used gating has_selection_bias n_groups n_groups_used by_logits is_normalized scale has_shared_gate columns norms eps norm_factor has_bias most_polls
// push: arrivals link n_awaited
// dispatch: x = rows of the matrix / subgroups of a workgroup, rounded up
// subgroup: arithmetic
// requires: full subgroups; weights in float32, columns a multiple of 4
// numerics: those of norm and route; the workgroup that ends last chooses
// source: own
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#ifdef MEMORY_MODEL
#pragma use_vulkan_memory_model
#extension GL_KHR_memory_scope_semantics : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 128;
layout(constant_id = 1) const uint N_EXPERTS = 128;
layout(constant_id = 2) const uint N_USED = 8;
layout(constant_id = 3) const uint GATING = 0;
layout(constant_id = 4) const uint HAS_SELECTION_BIAS = 0;
layout(constant_id = 5) const uint N_GROUPS = 1;
layout(constant_id = 6) const uint N_GROUPS_USED = 1;
layout(constant_id = 7) const uint BY_LOGITS = 0;
layout(constant_id = 8) const uint IS_NORMALIZED = 0;
layout(constant_id = 9) const uint SCALE = 0x3f800000;     // 1.0
layout(constant_id = 10) const uint HAS_SHARED_GATE = 0;
layout(constant_id = 11) const uint COLUMNS = 2048;
layout(constant_id = 12) const uint NORMS = 1;
layout(constant_id = 13) const uint EPS = 0x3727c5ac;         // 1e-5
layout(constant_id = 14) const uint NORM_FACTOR = 0x3f800000; // 1.0
layout(constant_id = 15) const uint HAS_BIAS = 0;
layout(constant_id = 16) const uint MOST_POLLS = 0; // of a wait; 0: there is none
layout(push_constant) uniform Push {
  uint arrivals; // where the chain counts this layer's workgroups that have left their logits
  uint link;
  uint n_awaited;
};
layout(std430, binding = 0) readonly buffer Weights { vec4 weights[]; };
layout(std430, binding = 1) coherent readonly buffer Source { vec4 source[]; };
layout(std430, binding = 2) readonly buffer NormWeight { vec4 norm_weight[]; };
layout(std430, binding = 3) readonly buffer Bias { float bias[]; };
layout(std430, binding = 4) coherent buffer Logits { float logits[]; };
layout(std430, binding = 5) readonly buffer SelectionBias { float selection_bias[]; };
layout(std430, binding = 6) coherent writeonly buffer Routes { uint routes[]; };
#define CHAIN_BINDING 7
#define FAILURE_BINDING 8
#include "lib/chain.glsl"
#include "lib/routing.glsl"

const uint ROWS = N_EXPERTS + HAS_SHARED_GATE;
const uint FOURS = COLUMNS / 4;
#define AT_ONCE 16 // fours of a lane whose loads are under way together; those of the first begin before the wait
shared bool is_last;
vec4 w[AT_ONCE];

void load_weights(uint row, uint first) {
  [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
    uint four = min(first + i * gl_SubgroupSize, FOURS - 1);
    w[i] = weights[row * FOURS + four];
    if (NORMS != 0) w[i] *= norm_weight[four];
  }
}

void main() {
  uint self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  uint row = gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID, lane = gl_SubgroupInvocationID;
  load_weights(min(row, ROWS - 1), lane);
  await_link();
  float sum = 0.0, squares = 0.0;
  for (uint first = lane; first < FOURS; first += AT_ONCE * gl_SubgroupSize) {
    vec4 v[AT_ONCE];
    [[unroll]] for (uint i = 0; i < AT_ONCE; i++) v[i] = source[min(first + i * gl_SubgroupSize, FOURS - 1)];
    if (first != lane) load_weights(min(row, ROWS - 1), first);
    [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
      if (first + i * gl_SubgroupSize < FOURS) {
        sum += dot(w[i], v[i]);
        squares += dot(v[i], v[i]);
      }
    }
  }
  sum = subgroupAdd(sum);
  if (NORMS != 0) {
    squares = subgroupAdd(squares);
    sum *= inversesqrt(squares / float(COLUMNS) + uintBitsToFloat(EPS)) * uintBitsToFloat(NORM_FACTOR);
  }
  if (lane == 0 && row < ROWS) logits[row] = HAS_BIAS != 0 ? sum + bias[row] : sum;
  workgroup_barrier();
  if (gl_LocalInvocationIndex == 0) {
    release();
    is_last = atomicAdd(ended[arrivals], 1u) == (ROWS - 1) / gl_NumSubgroups; // the last of all workgroups
    acquire();
  }
  workgroup_barrier();
  if (is_last) {
    for (uint e = self; e < 4 * EXPERT_FOURS; e += LOCAL_SIZE) keep_logit(e, logits[min(e, N_EXPERTS - 1)]);
    float shared_weight = HAS_SHARED_GATE != 0 ? sigmoid(logits[N_EXPERTS]) : 1.0;
    barrier();
    choose(self, 0, shared_weight);
  }
  end_link();
}
