// rms_norm: y = x / root mean square(x) * weight, as float32 and as q16 blocks
// bindings: x weight y y_q16 y_scales step
// constants: local_size columns eps
// push: takes_last_row
// dispatch: x = 1, y = tokens (1 where takes_last_row: the last row of the step goes to row 0)
// requires: subgroup arithmetic
// numerics: float32; eps is sent as the bits of a float32
// source: Zhang and Sennrich 2019, arXiv 1910.07467
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint EPS = 0x3727c5ac; // 1e-5
layout(push_constant) uniform Push { uint takes_last_row; };
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer Weight { float weight[]; };
layout(std430, binding = 2) writeonly buffer Y { float y[]; };
layout(std430, binding = 3) writeonly buffer YQ16 { uvec4 y_q16[]; };
layout(std430, binding = 4) writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 5
#include "lib/step.glsl"
#include "lib/q16.glsl"

shared float partial[64];

float sum_of_workgroup(float v) {
  float sum = subgroupAdd(v);
  if (gl_SubgroupInvocationID == 0) partial[gl_SubgroupID] = sum;
  barrier();
  sum = 0.0;
  for (uint i = 0; i < gl_NumSubgroups; i++) sum += partial[i];
  return sum;
}

void main() {
  uint row = gl_WorkGroupID.y;
  if (row >= n_rows) return;
  uint x_row = (takes_last_row != 0 ? n_rows - 1 : row) * COLUMNS;
  float squares = 0.0;
  for (uint c = gl_LocalInvocationID.x; c < COLUMNS; c += gl_WorkGroupSize.x) squares += x[x_row + c] * x[x_row + c];
  float factor = inversesqrt(sum_of_workgroup(squares) / float(COLUMNS) + uintBitsToFloat(EPS));

  for (uint block = gl_LocalInvocationID.x; block < COLUMNS / 32; block += gl_WorkGroupSize.x) {
    float v[32];
    for (uint i = 0; i < 32; i++) {
      uint c = 32 * block + i;
      v[i] = x[x_row + c] * factor * weight[c];
      y[row * COLUMNS + c] = v[i];
    }
    store_q16(row * (COLUMNS / 32) + block, v);
  }
}
