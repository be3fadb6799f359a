// activate: y = f(gate) * up or f(x), as float32 and in the form that quantizes says (lib/store_form.glsl)
// bindings: x y y_q16 y_scales step up
// constants: local_size columns activation is_gated slots up_columns up_column quantizes
// push:
// dispatch: x = columns / 4 / local_size, y = tokens; with gates x has 2 * columns columns, gate first, in each of `slots`
//   groups of columns; f: a function of lib/activations.glsl
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
layout(constant_id = 4) const uint SLOTS = 1;
layout(constant_id = 5) const uint UP_COLUMNS = 0; // of a row of `up`, whose columns from UP_COLUMN on y is multiplied by
layout(constant_id = 6) const uint UP_COLUMN = 0;
layout(constant_id = 7) const uint QUANTIZES = 1;
layout(std430, binding = 0) readonly buffer X { vec4 x[]; };
layout(std430, binding = 1) writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 2) writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 3) writeonly buffer YScales { vec2 y_scales[]; };
layout(std430, binding = 5) readonly buffer Up { vec4 up[]; };
#define STEP_BINDING 4
#include "lib/step.glsl"
#include "lib/store_form.glsl"
#include "lib/activations.glsl"

const uint FOURS = COLUMNS / 4;
const uint SLOT_FOURS = FOURS / SLOTS;

// Padding of y may lie beyond the last column of up.
vec4 four_of_up(uint row, uint i) {
  uint four = UP_COLUMN / 4 + i;
  return four < UP_COLUMNS / 4 ? up[row * (UP_COLUMNS / 4) + four] : vec4(0.0);
}

vec4 result(uint row, uint i) {
  uint from = (1 + IS_GATED) * row * FOURS + i;
  if (SLOTS != 1) from += IS_GATED * (i / SLOT_FOURS) * SLOT_FOURS;
  vec4 v = x[from];
  v = ACTIVATED(v);
  if (IS_GATED != 0) v *= UP_FACTOR(x[from + SLOT_FOURS]);
  if (UP_COLUMNS != 0) v *= four_of_up(row, i);
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
  store_form_of_block(row, COLUMNS / 32, block, v);
#else
  uint i = gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  if (row >= n_rows || i >= FOURS) return;
  vec4 v = result(row, i);
  store_form(row, COLUMNS / 32, i / 8, v);
#endif
}
