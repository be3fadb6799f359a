// expert_sum: y = factor * (the weighted sum of the results of a row's slots) (+ add)
// bindings: x routes shared_result add y step
// constants: local_size columns n_slots is_weighed has_shared adds factor
// push:
// dispatch: x = columns / local_size, y = tokens
// numerics: float32, slot by slot
// source: Shazeer et al. 2017, arXiv 1701.06538
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint N_SLOTS = 8;
layout(constant_id = 3) const uint IS_WEIGHED = 1;
layout(constant_id = 4) const uint HAS_SHARED = 0; // of the expert that all rows take, with its weight
layout(constant_id = 5) const uint ADDS = 0;
layout(constant_id = 6) const uint FACTOR = 0x3f800000; // 1.0
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer Routes { float routes[]; };
layout(std430, binding = 2) readonly buffer SharedResult { float shared_result[]; };
layout(std430, binding = 3) readonly buffer Add { float add[]; };
layout(std430, binding = 4) writeonly buffer Y { float y[]; };
#define STEP_BINDING 5
#include "lib/step.glsl"

void main() {
  uint row = gl_WorkGroupID.y, column = gl_GlobalInvocationID.x;
  if (row >= n_rows || column >= COLUMNS) return;
  uint route = row * (2 * N_SLOTS + 1), at = row * COLUMNS + column;
  float sum = 0.0;
  [[unroll]] for (uint k = 0; k < N_SLOTS; k++) {
    float one = x[(row * N_SLOTS + k) * COLUMNS + column];
    sum += IS_WEIGHED != 0 ? routes[route + N_SLOTS + k] * one : one;
  }
  if (HAS_SHARED != 0) sum += routes[route + 2 * N_SLOTS] * shared_result[at];
  if (FACTOR != 0x3f800000) sum *= uintBitsToFloat(FACTOR);
  y[at] = ADDS != 0 ? sum + add[at] : sum;
}
