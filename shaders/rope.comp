// rope: rotates queries and keys by their positions, or not; stores keys and values in the cache
// bindings: qkv rope_table q k_cache v_cache step head_weights q_factors
// constants: local_size n_heads n_kv_heads head_dim rope_dims is_interleaved k_q8_0 v_q8_0 table head_weights has_q_factors has_gates
// push:
// dispatch: x = (n_heads + 2 * n_kv_heads) * head_dim / 4 / local_size, y = tokens; four dimensions an invocation
// subgroup: shuffle
// requires: full subgroups of 8 or more, or the _plain variant, of which an eighth of the invocations have work;
//   head_dim a multiple of 8, with q8_0 of 32; rope_dims even
// numerics: float32, cosines and sines from a table computed in float64; the cache is float16 or q8_0
// source: Su et al. 2021, arXiv 2104.09864
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint N_HEADS = 32;
layout(constant_id = 2) const uint N_KV_HEADS = 8;
layout(constant_id = 3) const uint HEAD_DIM = 128;
layout(constant_id = 4) const uint ROPE_DIMS = 128;
layout(constant_id = 5) const uint IS_INTERLEAVED = 1;
layout(constant_id = 6) const uint K_Q8_0 = 0;
layout(constant_id = 7) const uint V_Q8_0 = 0;
layout(constant_id = 8) const uint TABLE = 0;
layout(constant_id = 9) const uint HEAD_WEIGHTS = 0;
layout(constant_id = 10) const uint HAS_Q_FACTORS = 0;
layout(constant_id = 11) const uint HAS_GATES = 0; // whether HEAD_DIM others lie behind each head of the queries
layout(std430, binding = 2) writeonly buffer Q { vec4 q[]; };
#define QKV_BINDING 0
#define TABLE_BINDING 1
#define K_BINDING 3
#define V_BINDING 4
#define STEP_BINDING 5
#define HEAD_WEIGHTS_BINDING 6
#define Q_FACTORS_BINDING 7
#include "lib/step.glsl"
#include "lib/rotate.glsl"
#include "lib/kvcache.glsl"

const uint HEADS = N_HEADS + 2 * N_KV_HEADS;
const uint INPUT_HEADS = HEADS + HAS_GATES * N_HEADS;
const uint FOURS = HEAD_DIM / 4;

// four dimensions of a head as they are cached or, of a query, attended with
vec4 four_of(uint row, uint head, uint four, uint position) {
  uint from = (row * INPUT_HEADS + head + HAS_GATES * min(head, N_HEADS)) * HEAD_DIM;
  if (head >= N_HEADS + N_KV_HEADS) return four_of_head(from, 4 * four);
  return rotated_four(from, 4 * four, position, head < N_HEADS ? QUERY : KEY);
}

#ifdef PLAIN
void main() {
  uint row = gl_WorkGroupID.y, i = 8 * gl_GlobalInvocationID.x;
  if (row >= n_rows) return;
  uint position = rows[row].y;
  vec4 v[8];
  [[unroll]] for (uint k = 0; k < 8; k++) {
    uint last = min(i + k, HEADS * FOURS - 1);
    v[k] = four_of(row, last / FOURS, last % FOURS, position);
  }
  float largest = largest_of_block(v); // of one head's if it is needed
  [[unroll]] for (uint k = 0; k < 8; k++) {
    if (i + k >= HEADS * FOURS) continue;
    uint head = (i + k) / FOURS, four = (i + k) % FOURS;
    if (head < N_HEADS) {
      q[(row * N_HEADS + head) * FOURS + four] = v[k];
      continue;
    }
    uint unit = unit_of(rows[row].z, (head - N_HEADS) % max(N_KV_HEADS, 1), position), cache_row = position % KV_BLOCK;
    if (head < N_HEADS + N_KV_HEADS) store_key(unit, cache_row, four, cached_four(v[k], largest, K_Q8_0));
    else store_value(unit, cache_row, four, cached_four(v[k], largest, V_Q8_0));
  }
}
#else
void main() {
  uint row = gl_WorkGroupID.y;
  uint i = gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  if (row >= n_rows || i >= HEADS * FOURS) return; // the eight lanes of a q8_0 block leave together
  uint position = rows[row].y;
  uint head = i / FOURS, four = i % FOURS;
  vec4 v = four_of(row, head, four, position);
  if (head < N_HEADS) {
    q[(row * N_HEADS + head) * FOURS + four] = v;
    return;
  }
  uint unit = unit_of(rows[row].z, (head - N_HEADS) % max(N_KV_HEADS, 1), position);
  if (head < N_HEADS + N_KV_HEADS) store_key(unit, position % KV_BLOCK, four, cached_four(v, K_Q8_0));
  else store_value(unit, position % KV_BLOCK, four, cached_four(v, V_Q8_0));
}
#endif
