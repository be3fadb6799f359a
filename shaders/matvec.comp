// matvec: y = factor * (W x + bias) (+ add) for a tile of tokens, what matvec_fused and matmul do not do
// bindings: quants scales x x_scales add y step bias
// constants: local_size columns rows_per_subgroup tokens_per_workgroup adds has_bias factor
// push: n_weight_rows y_offset y_stride
// dispatch: x = rows / (subgroups of a workgroup * rows_per_subgroup), of which the surplus goes on in z;
//   y = tokens / tokens_per_workgroup
// formats: all
// subgroup: arithmetic
// requires: full subgroups, or the _plain variant; integer dot product for quantized weights, or the _soft variant
// numerics: quantized: integer products of 16-bit activations, exact within a block (_soft: float32, exact up to 4
//   bits a weight and for Q6_K); float32 sums over blocks
// source: own; the way of ggml's mul_mat_vec: a subgroup a row, lanes along the columns, one subgroupAdd
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#ifndef SOFT_DOT
#extension GL_EXT_integer_dot_product : enable
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint ROWS = 2;
layout(constant_id = 3) const uint TOKENS = 1;
layout(constant_id = 4) const uint ADDS = 0;
layout(constant_id = 5) const uint HAS_BIAS = 0; // one number for each column of y
layout(constant_id = 6) const uint FACTOR = 0x3f800000; // 1.0
layout(push_constant) uniform Push {
  uint n_weight_rows;
  uint y_offset; // where these rows begin in a row of y
  uint y_stride;
};
layout(std430, binding = 0) readonly buffer Quants { uvec4 quants[]; };
layout(std430, binding = 1) readonly buffer Scales { uint scales[]; };
layout(std430, binding = 2) readonly buffer X { uvec4 x[]; };
layout(std430, binding = 3) readonly buffer XScales { vec2 x_scales[]; };
layout(std430, binding = 4) readonly buffer Add { float add[]; };
layout(std430, binding = 5) writeonly buffer Y { float y[]; };
#define STEP_BINDING 6
layout(std430, binding = 7) readonly buffer Bias { float bias[]; };
const uint BLOCKS = COLUMNS / 32;
#include "lib/step.glsl"
#include "lib/subgroups.glsl"
#include "formats/format.glsl"
#include "lib/products.glsl"

void main() {
  uint token0 = gl_WorkGroupID.y * TOKENS;
  if (token0 >= n_rows) return;
  prepare_weights();
  uint group = gl_WorkGroupID.z * gl_NumWorkGroups.x + gl_WorkGroupID.x;
  uint row0 = (group * N_SUBGROUPS + SUBGROUP) * ROWS;
#ifndef PLAIN // whose invocations stay together
  if (row0 >= n_weight_rows) return;
#endif

  float sums[ROWS * TOKENS];
  [[unroll]] for (uint i = 0; i < ROWS * TOKENS; i++) sums[i] = 0.0;
  for (uint block = LANE; block < BLOCKS; block += SUBGROUP_SIZE) {
    Weights w[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; r++) w[r] = load_weights(min(row0 + r, n_weight_rows - 1) * BLOCKS + block);
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
      Activations a = load_activations(min(token0 + t, n_rows - 1), block);
      [[unroll]] for (uint r = 0; r < ROWS; r++) {
        uint row = min(row0 + r, n_weight_rows - 1);
        sums[r * TOKENS + t] += product(w[r], row * BLOCKS + block, a);
      }
    }
  }
  [[unroll]] for (uint r = 0; r < ROWS; r++) {
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
      float sum = sum_of_subgroup(sums[r * TOKENS + t]);
      if (LANE == 0 && row0 + r < n_weight_rows && token0 + t < n_rows) {
        uint index = (token0 + t) * y_stride + y_offset + row0 + r;
        if (HAS_BIAS != 0) sum += bias[y_offset + row0 + r];
        if (FACTOR != 0x3f800000) sum *= uintBitsToFloat(FACTOR);
        y[index] = ADDS != 0 ? sum + add[index] : sum;
      }
    }
  }
}
