// convolution: y = f(each column convolved over its last tokens), or c * convolution(b * x) of (b | c | x)
// bindings: x weight bias states y y_q16 y_scales step
// constants: local_size columns x_columns n_kernel has_silu is_gated has_bias slot_words quantizes
// push: first_column first_word
// dispatch: x = columns / 4 / local_size, y = tokens; four columns an invocation
// subgroup: shuffle
// requires: full subgroups of 8 or more, or the _plain variant, of which an eighth of the invocations have work; to
//   quantize, columns a multiple of 32
// numerics: float32
// source: Gu and Dao 2023, arXiv 2312.00752
//
// x has rows of x_columns columns; those that are convolved begin at first_column. weight (columns, n_kernel), the newest
// token last. The state is the columns of the n_kernel - 1 tokens before a part, the oldest first; a step must not
// store it in the slot that it reads.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 10240;
layout(constant_id = 2) const uint X_COLUMNS = 16480;
layout(constant_id = 3) const uint N_KERNEL = 4;
layout(constant_id = 4) const uint HAS_SILU = 1;
layout(constant_id = 5) const uint IS_GATED = 0;
layout(constant_id = 6) const uint HAS_BIAS = 0;
layout(constant_id = 7) const uint SLOT_WORDS = 1024;
layout(constant_id = 8) const uint QUANTIZES = 0;
layout(push_constant) uniform Push {
  uint first_column;
  uint first_word;
};
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer XFours { vec4 x_fours[]; }; // the same
layout(std430, binding = 1) readonly buffer Weight { float weight[]; };
layout(std430, binding = 1) readonly buffer WeightFours { vec4 weight_fours[]; }; // the same, of a column of four tokens
layout(std430, binding = 2) readonly buffer Bias { float bias[]; };
layout(std430, binding = 3) buffer States { float states[]; };
layout(std430, binding = 4) writeonly buffer Y { float y[]; };
layout(std430, binding = 4) writeonly buffer YFours { vec4 y_fours[]; }; // the same
layout(std430, binding = 5) writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 6) writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 7
#include "lib/step.glsl"
#include "lib/states.glsl"
#include "lib/store_form.glsl"

// what is convolved in a row of the step
float source(uint row, uint column) {
  uint from = row * X_COLUMNS + first_column + column;
  return IS_GATED != 0 ? x[from] * x[from + 2 * COLUMNS] : x[from];
}

float result(uint row, uint part, uint column) {
  float taps[N_KERNEL]; // of the last tokens, the oldest first
  uint in_part = row - step_parts[part].x;
  if (in_part + 1 >= N_KERNEL) {
    [[unroll]] for (uint k = 0; k < N_KERNEL; k++) taps[k] = source(row + k + 1 - N_KERNEL, column);
  } else { // the first of them are in the state
    uint before = state_before(part);
    [[unroll]] for (uint k = 0; k < N_KERNEL; k++) {
      bool is_before = in_part + k + 1 < N_KERNEL;
      if (is_before && before == NO_SLOT) taps[k] = 0.0;
      else taps[k] = is_before ? states[before + (in_part + k) * COLUMNS + column] : source(row + k + 1 - N_KERNEL, column);
    }
  }
  float sum = HAS_BIAS != 0 ? bias[column] : 0.0;
  [[unroll]] for (uint k = 0; k < N_KERNEL; k++) sum = fma(weight[column * N_KERNEL + k], taps[k], sum);
  uint behind = state_behind(row);
  if (behind != NO_SLOT) {
    [[unroll]] for (uint k = 0; k + 1 < N_KERNEL; k++) states[behind + k * COLUMNS + column] = taps[k + 1];
  }
  if (HAS_SILU != 0) sum = sum / (1.0 + exp(-sum));
  if (IS_GATED != 0) sum *= x[row * X_COLUMNS + first_column + COLUMNS + column];
  y[row * COLUMNS + column] = sum;
  return sum;
}

// The same for four columns in whole words of 16 bytes, of a row whose tokens all lie in the step.
vec4 source_of_four(uint row, uint first) {
  uint from = (row * X_COLUMNS + first_column + first) / 4;
  return IS_GATED != 0 ? x_fours[from] * x_fours[from + COLUMNS / 2] : x_fours[from];
}

vec4 result_of_words(uint row, uint first) {
  vec4 taps[4], sum = vec4(0.0);
  [[unroll]] for (uint k = 0; k < 4; k++) taps[k] = source_of_four(row + k - 3, first);
  if (HAS_BIAS != 0) sum = vec4(bias[first], bias[first + 1], bias[first + 2], bias[first + 3]);
  mat4 weights = mat4(weight_fours[first], weight_fours[first + 1], weight_fours[first + 2], weight_fours[first + 3]);
  [[unroll]] for (uint k = 0; k < 4; k++) {
    sum = fma(vec4(weights[0][k], weights[1][k], weights[2][k], weights[3][k]), taps[k], sum);
  }
  if (HAS_SILU != 0) sum /= 1.0 + exp(-sum);
  if (IS_GATED != 0) sum *= x_fours[(row * X_COLUMNS + first_column + COLUMNS + first) / 4];
  y_fours[(row * COLUMNS + first) / 4] = sum;
  return sum;
}

vec4 result_of_four(uint row, uint first) {
  const bool has_words = N_KERNEL == 4 && COLUMNS % 4 == 0 && X_COLUMNS % 4 == 0;
  uint part = part_of_row(row);
  bool is_inside = row - step_parts[part].x >= 3 && state_behind(row) == NO_SLOT;
  if (has_words && first_column % 4 == 0 && first < COLUMNS && is_inside) {
    return result_of_words(row, first);
  }
  vec4 v = vec4(0.0);
  [[unroll]] for (uint k = 0; k < 4; k++) {
    if (first + k < COLUMNS) v[k] = result(row, part, first + k);
  }
  return v;
}

void main() {
  uint row = gl_WorkGroupID.y;
#ifdef PLAIN
  uint block = gl_GlobalInvocationID.x;
  if (row >= n_rows || 32 * block >= COLUMNS) return;
  vec4 v[8];
  [[unroll]] for (uint k = 0; k < 8; k++) v[k] = result_of_four(row, 32 * block + 4 * k);
  store_form_of_block(row, COLUMNS / 32, block, v);
#else
  uint i = gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  if (row >= n_rows || 4 * i >= COLUMNS) return; // eight lanes of a block leave together
  vec4 v = result_of_four(row, 4 * i);
  store_form(row, COLUMNS / 32, i / 8, v);
#endif
}
