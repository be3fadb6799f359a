// latent_rope: queries of latent attention, put together; the latent vector, normed, and its key, rotated, into the cache
// bindings: latent rope_table queries absorbed q k_cache step weight q_factors
// constants: local_size n_heads kv_rank nope_dim rope_dims is_interleaved k_q8_0 table has_q_factors eps
// push:
// dispatch: x = 1 + n_heads * (kv_rank + rope_dims) / 4 / local_size, y = tokens; the first takes what is cached
// subgroup: arithmetic shuffle
// requires: full subgroups of 8 or more, or the _plain variant; kv_rank a multiple of 4, rope_dims too, with q8_0 their
//   sum of 32
// numerics: those of norm and rope
// source: DeepSeek-AI 2024, arXiv 2405.04434
//
// latent: (vector of kv_rank | key of rope_dims) of each token, which are cached as one key. queries: of each head
// (nope_dim | rope_dims), of which the last rotate. absorbed: what the first have become, kv_rank of each head.
// q: of each head (kv_rank | rope_dims).
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint N_HEADS = 16;
layout(constant_id = 2) const uint KV_RANK = 512;
layout(constant_id = 3) const uint NOPE_DIM = 128;
layout(constant_id = 4) const uint ROPE_DIMS = 64;
layout(constant_id = 5) const uint IS_INTERLEAVED = 1;
layout(constant_id = 6) const uint K_Q8_0 = 0;
layout(constant_id = 7) const uint TABLE = 0;
layout(constant_id = 8) const uint HAS_Q_FACTORS = 0;
layout(constant_id = 9) const uint EPS = 0x3727c5ac; // 1e-5
layout(std430, binding = 0) readonly buffer Latent { float latent[]; };
layout(std430, binding = 1) readonly buffer RopeTable { vec2 rope_table[]; };
layout(std430, binding = 2) readonly buffer Queries { float queries[]; };
layout(std430, binding = 3) readonly buffer Absorbed { vec4 absorbed[]; };
layout(std430, binding = 4) writeonly buffer Q { vec4 q[]; };
layout(std430, binding = 7) readonly buffer Weight { vec4 weight[]; };
layout(std430, binding = 8) readonly buffer QFactors { float q_factors[]; };
#define K_BINDING 5
#define V_BINDING 5 // there is none
#define STEP_BINDING 6
const uint HEAD_DIM = KV_RANK + ROPE_DIMS;
const uint N_KV_HEADS = 1;
const uint V_Q8_0 = 0;
#include "lib/step.glsl"
#include "lib/subgroups.glsl"
#include "lib/workgroup_sum.glsl"
#include "lib/kvcache.glsl"

const uint TURNS = ROPE_DIMS / 2;
const uint FOURS = HEAD_DIM / 4;
const uint RANK_FOURS = KV_RANK / 4;

uint partner_of(uint d) { return IS_INTERLEAVED != 0 ? d ^ 1u : (d < TURNS ? d + TURNS : d - TURNS); }

// dimension d of ROPE_DIMS, rotated with its partner
float turned(float v, float partner, uint d, uint position) {
  vec2 turn = rope_table[position * TURNS + (IS_INTERLEAVED != 0 ? d / 2 : d % max(TURNS, 1))];
  bool is_first = IS_INTERLEAVED != 0 ? d % 2 == 0 : d < TURNS;
  return v * turn.x + partner * (is_first ? -turn.y : turn.y);
}

vec4 four_of_query(uint row, uint head, uint four, uint position) {
  if (four < RANK_FOURS) return absorbed[(row * N_HEADS + head) * RANK_FOURS + four];
  uint from = (row * N_HEADS + head) * (NOPE_DIM + ROPE_DIMS) + NOPE_DIM;
  vec4 v;
  [[unroll]] for (uint k = 0; k < 4; k++) {
    uint d = 4 * (four - RANK_FOURS) + k;
    v[k] = turned(queries[from + d], queries[from + partner_of(d)], d, position);
  }
  return v;
}

vec4 four_of_vector(uint row, uint four) {
  uint from = row * HEAD_DIM + 4 * four;
  return vec4(latent[from], latent[from + 1], latent[from + 2], latent[from + 3]);
}

// of what is cached
vec4 four_of_key(uint row, uint four, uint position, float factor) {
  if (four < RANK_FOURS) return four_of_vector(row, four) * factor * weight[four];
  uint from = row * HEAD_DIM + KV_RANK;
  vec4 v;
  [[unroll]] for (uint k = 0; k < 4; k++) {
    uint d = 4 * (four - RANK_FOURS) + k;
    v[k] = turned(latent[from + d], latent[from + partner_of(d)], d, position);
  }
  return v;
}

void store(uint row, uint position, uint self) {
  float squares = 0.0;
  for (uint i = self; i < RANK_FOURS; i += gl_WorkGroupSize.x) {
    vec4 v = four_of_vector(row, i);
    squares += dot(v, v);
  }
  float factor = inversesqrt(sum_of_workgroup(squares) / float(KV_RANK) + uintBitsToFloat(EPS));
  uint unit = unit_of(rows[row].z, 0, position);
#ifdef PLAIN
  for (uint block = self; block < (FOURS + 7) / 8; block += gl_WorkGroupSize.x) {
    vec4 v[8];
    [[unroll]] for (uint k = 0; k < 8; k++) v[k] = four_of_key(row, min(8 * block + k, FOURS - 1), position, factor);
    float largest = largest_of_block(v);
    [[unroll]] for (uint k = 0; k < 8; k++) {
      if (8 * block + k >= FOURS) continue;
      store_key(unit, position % KV_BLOCK, 8 * block + k, cached_four(v[k], largest, K_Q8_0));
    }
  }
#else
  for (uint i = self; i < FOURS; i += gl_WorkGroupSize.x) { // the eight lanes of a q8_0 block come together
    store_key(unit, position % KV_BLOCK, i, cached_four(four_of_key(row, i, position, factor), K_Q8_0));
  }
#endif
}

void main() {
  uint row = gl_WorkGroupID.y;
  if (row >= n_rows) return;
  uint self = SUBGROUP * SUBGROUP_SIZE + LANE, position = rows[row].y;
  if (gl_WorkGroupID.x == 0) {
    store(row, position, self);
    return;
  }
  uint i = (gl_WorkGroupID.x - 1) * gl_WorkGroupSize.x + self;
  if (i >= N_HEADS * FOURS) return;
  vec4 v = four_of_query(row, i / FOURS, i % FOURS, position);
  q[row * N_HEADS * FOURS + i] = HAS_Q_FACTORS != 0 ? v * q_factors[position] : v;
}
