// matvec_fused: y = W f(source) (+ add) for one token, where f is rms_norm or swiglu: decode's way to save dispatches
// bindings: quants scales source norm_weight add y
// constants: local_size columns rows_per_subgroup unroll takes_swiglu adds eps
// push: n_weight_rows y_offset
// dispatch: x = rows / (subgroups of a workgroup * rows_per_subgroup)
// formats: Q4_0 Q4_1 Q8_0 Q4_K Q5_K Q6_K
// requires: subgroup arithmetic and shuffle, subgroups of 8 or more; 2.25 bytes of shared memory a column; integer dot
//   product, or the _soft variant
// numerics: those of rms_norm, swiglu and matvec; every workgroup quantizes the activations for itself
// source: own
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#ifndef SOFT_DOT
#extension GL_EXT_integer_dot_product : enable
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint ROWS = 2;
layout(constant_id = 3) const uint UNROLL = 2; // blocks of a row whose loads are under way together
layout(constant_id = 4) const uint TAKES_SWIGLU = 0;
layout(constant_id = 5) const uint ADDS = 0;
layout(constant_id = 6) const uint EPS = 0x3727c5ac; // 1e-5
layout(push_constant) uniform Push {
  uint n_weight_rows;
  uint y_offset;
};
layout(std430, binding = 0) readonly buffer Quants { uvec4 quants[]; };
layout(std430, binding = 1) readonly buffer Scales { uint scales[]; };
layout(std430, binding = 2) readonly buffer Source { vec4 source[]; };
layout(std430, binding = 3) readonly buffer NormWeight { vec4 norm_weight[]; };
layout(std430, binding = 4) readonly buffer Add { float add[]; };
layout(std430, binding = 5) writeonly buffer Y { float y[]; };
const uint BLOCKS = COLUMNS / 32;
const uint FOURS = COLUMNS / 4;
shared uvec4 x[BLOCKS * 4];
shared vec2 x_scales[BLOCKS];
shared float partial[64];
#define Q16_WORD(word) x[(word) / 4][(word) % 4]
#define Q16_SCALES(block) x_scales[block]
#include "lib/q16.glsl"
#include "lib/weights.glsl"
#include "lib/products.glsl"

float norm_factor(uint self) {
  float squares = 0.0;
  for (uint i = self; i < FOURS; i += gl_WorkGroupSize.x) squares += dot(source[i], source[i]);
  float sum = subgroupAdd(squares);
  if (gl_SubgroupInvocationID == 0) partial[gl_SubgroupID] = sum;
  barrier();
  sum = 0.0;
  for (uint i = 0; i < gl_NumSubgroups; i++) sum += partial[i];
  return inversesqrt(sum / float(COLUMNS) + uintBitsToFloat(EPS));
}

Weights w[ROWS * UNROLL];

void load_blocks(uint row0, uint block) {
  [[unroll]] for (uint u = 0; u < UNROLL; u++) {
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
      uint b = min(block + u * gl_SubgroupSize, BLOCKS - 1);
      w[u * ROWS + r] = load_weights(min(row0 + r, n_weight_rows - 1) * BLOCKS + b);
    }
  }
}

void main() {
  uint row0 = (gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID) * ROWS;
  load_blocks(row0, gl_SubgroupInvocationID); // on their way while the activations are computed
  uint self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  float factor = TAKES_SWIGLU != 0 ? 0.0 : norm_factor(self);
  for (uint i = self; i < FOURS; i += gl_WorkGroupSize.x) {
    vec4 v = source[i];
    if (TAKES_SWIGLU != 0) v = v / (1.0 + exp(-v)) * source[FOURS + i];
    else v *= factor * norm_weight[i];
    store_q16(0, BLOCKS, i / 8, v);
  }
  barrier();

  if (row0 >= n_weight_rows) return;
  float sums[ROWS];
  [[unroll]] for (uint r = 0; r < ROWS; r++) sums[r] = 0.0;
  for (uint block = gl_SubgroupInvocationID; block < BLOCKS; block += UNROLL * gl_SubgroupSize) {
    if (block != gl_SubgroupInvocationID) load_blocks(row0, block);
    [[unroll]] for (uint u = 0; u < UNROLL; u++) {
      uint b = block + u * gl_SubgroupSize;
      if (b >= BLOCKS) break;
      Activations a = load_activations(0, b);
      [[unroll]] for (uint r = 0; r < ROWS; r++) sums[r] += product(w[u * ROWS + r], a);
    }
  }
  [[unroll]] for (uint r = 0; r < ROWS; r++) {
    float sum = subgroupAdd(sums[r]);
    uint index = y_offset + row0 + r;
    if (gl_SubgroupInvocationID == 0 && row0 + r < n_weight_rows) y[index] = ADDS != 0 ? sum + add[index] : sum;
  }
}
