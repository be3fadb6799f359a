// norm: y = factor * scale * (normed x * weight + bias [+ add]), as float32 and in the form that quantizes says (lib/store_form.glsl)
// bindings: x weight bias add y y_q16 y_scales step scale chain failure norm_factors
// constants: local_size columns eps form has_weight has_bias adds quantizes x_columns group factor has_scale most_polls y_columns y_column keeps_factors factors_at
// push: first_row link n_awaited
// dispatch: x = 1 or columns / group, y = tokens (x's row first_row + i goes to y's row i; RESULT_ROWS: x's row of result i)
// subgroup: arithmetic shuffle
// requires: full subgroups of 8 or more, or the _plain variant; groups of a multiple of 4 columns, and to quantize more
//   than one of 32
// numerics: float32, a layer norm's deviation from the differences with its mean; eps is sent as the bits of a float32
// source: Zhang and Sennrich 2019, arXiv 1910.07467; Ba et al. 2016, arXiv 1607.06450
//
// form = 0: normed x = x / root mean square(x); 1: (x - mean(x)) / standard deviation(x); 2: x, to quantize it.
// add may be y. Columns behind the last whole group are 0.
// keeps_factors: 1 / root mean square of each row comes to norm_factors, for the products of matmul_narrow that follow.
// Only the modules with the memory model take part in a chain, so that others may cache what they read.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
#ifdef MEMORY_MODEL
#pragma use_vulkan_memory_model
#extension GL_KHR_memory_scope_semantics : require
#define PASSED coherent
#else
#define PASSED
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint EPS = 0x3727c5ac; // 1e-5
layout(constant_id = 3) const uint FORM = 0; // a place in NORM_FORMS of vkllm/gpu/program/kernels.py
layout(constant_id = 4) const uint HAS_WEIGHT = 1;
layout(constant_id = 5) const uint HAS_BIAS = 0;
layout(constant_id = 6) const uint ADDS = 0;
layout(constant_id = 7) const uint QUANTIZES = 1;
layout(constant_id = 8) const uint X_COLUMNS = 0; // of a row of x; 0: as many as y has
layout(constant_id = 9) const uint GROUP = 0;     // columns that are normed at once, with the same weights; 0: all
layout(constant_id = 10) const uint FACTOR = 0x3f800000; // 1.0
layout(constant_id = 11) const uint HAS_SCALE = 0;       // whether there is one more factor, in a buffer
layout(constant_id = 12) const uint MOST_POLLS = 0;      // of a wait; 0: there is none
layout(constant_id = 13) const uint Y_COLUMNS = 0;       // of a row of y; 0: as many as are normed
layout(constant_id = 14) const uint Y_COLUMN = 0;        // of y, where the result begins
layout(constant_id = 15) const uint KEEPS_FACTORS = 0;
layout(constant_id = 16) const uint FACTORS_AT = 0; // where those of the rows begin
layout(push_constant) uniform Push {
  uint first_row;
  uint link;
  uint n_awaited;
};
layout(std430, binding = 0) PASSED readonly buffer X { vec4 x[]; };
layout(std430, binding = 1) readonly buffer Weight { vec4 weight[]; };
layout(std430, binding = 2) readonly buffer Bias { vec4 bias[]; };
layout(std430, binding = 3) PASSED readonly buffer Add { vec4 add[]; };
layout(std430, binding = 4) PASSED writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 5) PASSED writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 6) PASSED writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 7
layout(std430, binding = 8) readonly buffer Scale { float scale[]; };
#define CHAIN_BINDING 9
#define FAILURE_BINDING 10
layout(std430, binding = 11) writeonly buffer NormFactors { float norm_factors[]; };
#include "lib/step.glsl"
#ifdef MEMORY_MODEL
#include "lib/chain.glsl"
#endif
#include "lib/subgroups.glsl"
#include "lib/workgroup_sum.glsl"
#include "lib/store_form.glsl"

const uint FOURS = COLUMNS / 4;
const uint X_FOURS = X_COLUMNS != 0 ? X_COLUMNS / 4 : FOURS;
const uint Y_FOURS = Y_COLUMNS != 0 ? Y_COLUMNS / 4 : FOURS;
const uint NORMED = GROUP != 0 ? GROUP : COLUMNS; // at once
const uint N_GROUPS = COLUMNS / NORMED;
const uint RESULT_ROWS = 0xffffffff; // vkllm/gpu/program/kernels.py has it too

vec4 result(uint row, uint x_row, uint i, float mean, float factor) {
  uint in_group = N_GROUPS > 1 ? i % (NORMED / 4) : i;
  vec4 v = vec4(0.0);
  if (N_GROUPS * NORMED == COLUMNS || i < N_GROUPS * NORMED / 4) {
    v = (x[x_row + i] - mean) * factor;
    if (HAS_WEIGHT != 0) v *= weight[in_group];
    if (HAS_BIAS != 0) v += bias[in_group];
  }
  if (ADDS != 0) v += add[row * FOURS + i];
  if (FACTOR != 0x3f800000) v *= uintBitsToFloat(FACTOR);
  if (HAS_SCALE != 0) v *= scale[0];
  y[row * Y_FOURS + Y_COLUMN / 4 + i] = v;
  return v;
}

void main() {
  uint row = gl_WorkGroupID.y;
  if (row >= (first_row == RESULT_ROWS ? n_results : n_rows)) return;
#ifdef MEMORY_MODEL
  await_link();
#endif
  uint self = SUBGROUP * SUBGROUP_SIZE + LANE;
  uint x_row = (first_row == RESULT_ROWS ? step_results[2 * row].x : first_row + row) * X_FOURS;
  uint first = N_GROUPS > 1 ? gl_WorkGroupID.x * (NORMED / 4) : 0, end = first + NORMED / 4;
  float mean = 0.0, squares = 0.0;
  if (FORM == 1) {
    float sum = 0.0;
    for (uint i = first + self; i < end; i += gl_WorkGroupSize.x) sum += dot(x[x_row + i], vec4(1.0));
    mean = sum_of_workgroup(sum) / float(NORMED);
    barrier();
  }
  float factor = 1.0;
  if (FORM != 2) {
    for (uint i = first + self; i < end; i += gl_WorkGroupSize.x) {
      vec4 v = x[x_row + i] - mean;
      squares += dot(v, v);
    }
    factor = inversesqrt(sum_of_workgroup(squares) / float(NORMED) + uintBitsToFloat(EPS));
  }
  if (KEEPS_FACTORS != 0 && self == 0) norm_factors[FACTORS_AT + row] = factor;
  if (end == N_GROUPS * NORMED / 4) end = FOURS;
#ifdef PLAIN
  for (uint block = first / 8 + self; QUANTIZES != 0 && block < end / 8; block += gl_WorkGroupSize.x) {
    vec4 v[8];
    [[unroll]] for (uint k = 0; k < 8; k++) v[k] = result(row, x_row, 8 * block + k, mean, factor);
    store_form_of_block(row, Y_FOURS / 8, Y_COLUMN / 32 + block, v);
  }
  for (uint i = first + self; QUANTIZES == 0 && i < end; i += gl_WorkGroupSize.x) {
    result(row, x_row, i, mean, factor);
  }
#else
  for (uint i = first + self; i < end; i += gl_WorkGroupSize.x) {
    vec4 v = result(row, x_row, i, mean, factor);
    store_form(row, Y_FOURS / 8, Y_COLUMN / 32 + i / 8, v);
  }
#endif
#ifdef MEMORY_MODEL
  end_link();
#endif
}
