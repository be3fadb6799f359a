// attention_merge: merges what attention left of each split, and divides by the sum of weights
// bindings: partials y y_q16 y_scales step
// constants: local_size n_heads head_dim
// push: max_splits
// dispatch: x = n_heads * head_dim / 4 / local_size, y = tokens; four outputs an invocation
// requires: subgroup shuffle, subgroups of 8 or more
// numerics: float32; the splits in order, as attention does it where it loops
// source: Dao et al. 2023, Flash-Decoding
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint N_HEADS = 32;
layout(constant_id = 2) const uint HEAD_DIM = 128;
layout(push_constant) uniform Push { uint max_splits; };
layout(std430, binding = 0) readonly buffer Partials { float partials[]; };
layout(std430, binding = 1) writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 2) writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 3) writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 4
#include "lib/step.glsl"
#include "lib/q16.glsl"

#define SPLIT 64
#define AT_ONCE 8 // splits whose loads are under way together

void main() {
  uint row = gl_WorkGroupID.y;
  uint four = gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  if (row >= n_rows || four >= N_HEADS * HEAD_DIM / 4) return;
  uint head = four / (HEAD_DIM / 4);
  uint n_splits = rows[row].y / SPLIT + 1;
  uint from = (row * N_HEADS + head) * max_splits * (HEAD_DIM + 2);
  uint d = 2 + 4 * (four % (HEAD_DIM / 4));
  float largest = -1e30, total = 0.0;
  vec4 sum = vec4(0.0);
  for (uint first = 0; first < n_splits; first += AT_ONCE) {
    vec2 parts[AT_ONCE]; // maximum and sum of weights
    vec4 sums[AT_ONCE];
    [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
      uint at = from + min(first + i, n_splits - 1) * (HEAD_DIM + 2);
      parts[i] = vec2(partials[at], partials[at + 1]);
      sums[i] = vec4(partials[at + d], partials[at + d + 1], partials[at + d + 2], partials[at + d + 3]);
    }
    [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
      if (first + i >= n_splits) break;
      float most = max(largest, parts[i].x);
      float decay = exp(largest - most), share = exp(parts[i].x - most);
      total = total * decay + parts[i].y * share;
      sum = sum * decay + sums[i] * share;
      largest = most;
    }
  }
  vec4 v = sum / total;
  y[row * N_HEADS * (HEAD_DIM / 4) + four] = v;
  store_q16(row, N_HEADS * HEAD_DIM / 32, four / 8, v);
}
