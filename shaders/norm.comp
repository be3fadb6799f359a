// norm: y = normed x * weight + bias, as float32 and as q16 blocks; or y = add + that, as float32 only
// bindings: x weight bias add y y_q16 y_scales step
// constants: local_size columns eps form has_weight has_bias adds
// push: first_row
// dispatch: x = 1, y = tokens (x's row first_row + i goes to y's row i; LAST_ROW: only the last row of the step, to row 0)
// subgroup: arithmetic shuffle
// requires: full subgroups of 8 or more, or the _plain variant
// numerics: float32, a layer norm's deviation from the differences with its mean; eps is sent as the bits of a float32
// source: Zhang and Sennrich 2019, arXiv 1910.07467; Ba et al. 2016, arXiv 1607.06450
//
// form = 0: normed x = x / root mean square(x); 1: (x - mean(x)) / standard deviation(x); 2: x, to quantize it.
// add may be y.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint EPS = 0x3727c5ac; // 1e-5
layout(constant_id = 3) const uint FORM = 0; // a place in NORM_FORMS of vkllm/gpu/program/kernels.py
layout(constant_id = 4) const uint HAS_WEIGHT = 1;
layout(constant_id = 5) const uint HAS_BIAS = 0;
layout(constant_id = 6) const uint ADDS = 0;
layout(push_constant) uniform Push { uint first_row; };
layout(std430, binding = 0) readonly buffer X { vec4 x[]; };
layout(std430, binding = 1) readonly buffer Weight { vec4 weight[]; };
layout(std430, binding = 2) readonly buffer Bias { vec4 bias[]; };
layout(std430, binding = 3) readonly buffer Add { vec4 add[]; };
layout(std430, binding = 4) writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 5) writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 6) writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 7
#include "lib/step.glsl"
#include "lib/subgroups.glsl"
#include "lib/workgroup_sum.glsl"
#include "lib/q16.glsl"

const uint FOURS = COLUMNS / 4;
const uint LAST_ROW = 0xffffffff; // vkllm/gpu/program/kernels.py has it too

vec4 result(uint row, uint x_row, uint i, float mean, float factor) {
  vec4 v = (x[x_row + i] - mean) * factor;
  if (HAS_WEIGHT != 0) v *= weight[i];
  if (HAS_BIAS != 0) v += bias[i];
  if (ADDS != 0) v += add[row * FOURS + i];
  y[row * FOURS + i] = v;
  return v;
}

void main() {
  uint row = gl_WorkGroupID.y;
  if (row >= n_rows) return;
  uint self = SUBGROUP * SUBGROUP_SIZE + LANE;
  uint x_row = (first_row == LAST_ROW ? n_rows - 1 : first_row + row) * FOURS;
  float mean = 0.0, squares = 0.0;
  if (FORM == 1) {
    float sum = 0.0;
    for (uint i = self; i < FOURS; i += gl_WorkGroupSize.x) sum += dot(x[x_row + i], vec4(1.0));
    mean = sum_of_workgroup(sum) / float(COLUMNS);
    barrier();
  }
  float factor = 1.0;
  if (FORM != 2) {
    for (uint i = self; i < FOURS; i += gl_WorkGroupSize.x) {
      vec4 v = x[x_row + i] - mean;
      squares += dot(v, v);
    }
    factor = inversesqrt(sum_of_workgroup(squares) / float(COLUMNS) + uintBitsToFloat(EPS));
  }
#ifdef PLAIN
  for (uint block = self; block < FOURS / 8; block += gl_WorkGroupSize.x) {
    vec4 v[8];
    [[unroll]] for (uint k = 0; k < 8; k++) v[k] = result(row, x_row, 8 * block + k, mean, factor);
    if (ADDS == 0) store_q16_block(row, COLUMNS / 32, block, v);
  }
#else
  for (uint i = self; i < FOURS; i += gl_WorkGroupSize.x) {
    vec4 v = result(row, x_row, i, mean, factor);
    if (ADDS == 0) store_q16(row, COLUMNS / 32, i / 8, v);
  }
#endif
}
