// activate: y = f(gate) * up or f(x), as float32 and as q16 blocks; f: silu, gelu or the square of relu
// bindings: x y y_q16 y_scales step
// constants: local_size columns activation is_gated
// push:
// dispatch: x = columns / 4 / local_size, y = tokens; with gates x has 2 * columns columns, gate first
// subgroup: shuffle
// requires: full subgroups of 8 or more, or the _plain variant, of which an eighth of the invocations have work
// numerics: float32
// source: Shazeer 2020, arXiv 2002.05202
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 11008;
layout(constant_id = 2) const uint ACTIVATION = 1;
layout(constant_id = 3) const uint IS_GATED = 1;
layout(std430, binding = 0) readonly buffer X { vec4 x[]; };
layout(std430, binding = 1) writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 2) writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 3) writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 4
#include "lib/step.glsl"
#include "lib/q16.glsl"
#include "lib/activations.glsl"

const uint FOURS = COLUMNS / 4;

vec4 result(uint row, uint i) {
  uint from = (1 + IS_GATED) * row * FOURS + i;
  vec4 v = x[from];
  v = ACTIVATED(v);
  if (IS_GATED != 0) v *= x[from + FOURS];
  y[row * FOURS + i] = v;
  return v;
}

void main() {
  uint row = gl_WorkGroupID.y;
#ifdef PLAIN
  uint block = gl_GlobalInvocationID.x;
  if (row >= n_rows || block >= FOURS / 8) return;
  vec4 v[8];
  [[unroll]] for (uint k = 0; k < 8; k++) v[k] = result(row, 8 * block + k);
  store_q16_block(row, COLUMNS / 32, block, v);
#else
  uint i = gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  if (row >= n_rows || i >= FOURS) return;
  vec4 v = result(row, i);
  store_q16(row, COLUMNS / 32, i / 8, v);
#endif
}
