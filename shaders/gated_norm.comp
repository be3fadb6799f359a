// gated_norm: y = normed x * weight * silu(z), or normed(x * silu(z)) * weight, group of columns by group
// bindings: x gates weight squares y y_q16 y_scales step
// constants: local_size columns group span gates_columns eps is_gated_first has_weight_per_group normed_columns quantizes
// push: first_column
// dispatch: x = columns / span, y = tokens; span: columns of a workgroup, whole groups and, to quantize, whole blocks
//   of 32, or else multiples of 4
// subgroup: arithmetic shuffle
// requires: full subgroups of 8 or more, or the _plain variant; columns a multiple of span
// numerics: float32; eps is sent as the bits of a float32
// source: Dao and Gu 2024, arXiv 2405.21060; Yang et al. 2024, arXiv 2412.06464
//
// normed x = x / root mean square(x) of its group. z begins at first_column of the rows of `gates`, which have
// gates_columns columns. weight: (group,), or (columns,) with has_weight_per_group. squares (tokens, 4): with
// normed_columns, the columns are a part of a group of so many, whose sum of squares is the first of each four.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 6144;
layout(constant_id = 2) const uint GROUP = 128;
layout(constant_id = 3) const uint SPAN = 128;
layout(constant_id = 4) const uint GATES_COLUMNS = 16480;
layout(constant_id = 5) const uint EPS = 0x3727c5ac; // 1e-5
layout(constant_id = 6) const uint IS_GATED_FIRST = 0;
layout(constant_id = 7) const uint HAS_WEIGHT_PER_GROUP = 0;
layout(constant_id = 8) const uint NORMED_COLUMNS = 0;
layout(constant_id = 9) const uint QUANTIZES = 0;
layout(push_constant) uniform Push { uint first_column; };
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer Gates { float gates[]; };
layout(std430, binding = 2) readonly buffer Weight { float weight[]; };
layout(std430, binding = 3) readonly buffer Squares { vec4 squares_of_all[]; };
layout(std430, binding = 4) writeonly buffer Y { float y[]; };
layout(std430, binding = 5) writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 6) writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 7
#include "lib/step.glsl"
#include "lib/subgroups.glsl"
#include "lib/workgroup_sum.glsl"
#include "lib/store_form.glsl"

const uint FOURS = SPAN / 4;
const bool IS_PART = NORMED_COLUMNS != 0, IS_ONE_GROUP = GROUP == SPAN || IS_PART;
shared float squares_of[IS_ONE_GROUP ? 1 : SPAN];

float silu_of_z(uint row, uint column) {
  float z = gates[row * GATES_COLUMNS + first_column + column];
  return z / (1.0 + exp(-z));
}

float normed_input(uint row, uint column) {
  float v = x[row * COLUMNS + column];
  return IS_GATED_FIRST != 0 ? v * silu_of_z(row, column) : v;
}

vec4 result_of_four(uint row, uint four, float factor) {
  vec4 v;
  [[unroll]] for (uint k = 0; k < 4; k++) {
    uint within = 4 * four + k, column = gl_WorkGroupID.x * SPAN + within;
    float group_factor = factor;
    if (!IS_ONE_GROUP) {
      float squares = 0.0;
      for (uint i = 0; i < GROUP; i++) squares += squares_of[within / GROUP * GROUP + i];
      group_factor = inversesqrt(squares / float(GROUP) + uintBitsToFloat(EPS));
    }
    float normed = normed_input(row, column) * group_factor;
    normed *= weight[HAS_WEIGHT_PER_GROUP != 0 ? column : within % GROUP];
    v[k] = IS_GATED_FIRST != 0 ? normed : normed * silu_of_z(row, column);
    y[row * COLUMNS + column] = v[k];
  }
  return v;
}

void main() {
  uint row = gl_WorkGroupID.y, first = gl_WorkGroupID.x * SPAN;
  if (row >= n_rows) return;
  uint self = SUBGROUP * SUBGROUP_SIZE + LANE;
  float squares = 0.0, factor = 0.0;
  for (uint i = self; !IS_PART && i < SPAN; i += gl_WorkGroupSize.x) {
    float v = normed_input(row, first + i);
    if (!IS_ONE_GROUP) squares_of[i] = v * v;
    squares += v * v;
  }
  if (IS_PART) factor = inversesqrt(squares_of_all[row].x / float(NORMED_COLUMNS) + uintBitsToFloat(EPS));
  else if (IS_ONE_GROUP) factor = inversesqrt(sum_of_workgroup(squares) / float(GROUP) + uintBitsToFloat(EPS));
  else barrier();
#ifdef PLAIN
  for (uint block = self; QUANTIZES != 0 && block < FOURS / 8; block += gl_WorkGroupSize.x) {
    vec4 v[8];
    [[unroll]] for (uint k = 0; k < 8; k++) v[k] = result_of_four(row, 8 * block + k, factor);
    store_form_of_block(row, COLUMNS / 32, first / 32 + block, v);
  }
  for (uint i = self; QUANTIZES == 0 && i < FOURS; i += gl_WorkGroupSize.x) result_of_four(row, i, factor);
#else
  for (uint i = self; i < FOURS; i += gl_WorkGroupSize.x) {
    vec4 v = result_of_four(row, i, factor);
    store_form(row, COLUMNS / 32, (first / 4 + i) / 8, v);
  }
#endif
}
