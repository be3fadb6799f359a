// sum_parts: y = factor * (the sum of the parts of a product + bias) (+ add)
// bindings: parts add y step bias
// constants: local_size n_parts adds has_bias factor
// push: n_weight_rows y_offset y_stride part_rows
// dispatch: x = n_weight_rows / local_size, rounded up; y = tokens
// numerics: float32, part by part
// source: own; split-K as in CUTLASS
//
// A part has part_rows rows of n_weight_rows numbers (matmul.comp).
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint N_PARTS = 2;
layout(constant_id = 2) const uint ADDS = 0;
layout(constant_id = 3) const uint HAS_BIAS = 0;
layout(constant_id = 4) const uint FACTOR = 0x3f800000; // 1.0
layout(push_constant) uniform Push {
  uint n_weight_rows;
  uint y_offset;
  uint y_stride;
  uint part_rows;
};
layout(std430, binding = 0) readonly buffer Parts { float parts[]; };
layout(std430, binding = 1) readonly buffer Add { float add[]; };
layout(std430, binding = 2) writeonly buffer Y { float y[]; };
#define STEP_BINDING 3
layout(std430, binding = 4) readonly buffer Bias { float bias[]; };
#include "lib/step.glsl"

void main() {
  uint row = gl_WorkGroupID.y, column = gl_GlobalInvocationID.x;
  if (row >= n_rows || column >= n_weight_rows) return;
  float part[N_PARTS]; // all on their way together
  [[unroll]] for (uint i = 0; i < N_PARTS; i++) part[i] = parts[(i * part_rows + row) * n_weight_rows + column];
  float sum = HAS_BIAS != 0 ? bias[y_offset + column] : 0.0;
  [[unroll]] for (uint i = 0; i < N_PARTS; i++) sum += part[i];
  if (FACTOR != 0x3f800000) sum *= uintBitsToFloat(FACTOR);
  uint at = row * y_stride + y_offset + column;
  y[at] = ADDS != 0 ? sum + add[at] : sum;
}
