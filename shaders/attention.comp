// attention: attention of a few queries (heads, tokens) that share a key head, over the cached tokens that they see
// bindings: q k_cache v_cache y y_q16 y_scales step sinks gates
// constants: local_size n_heads n_kv_heads head_dim lanes heads_per_workgroup tokens_per_workgroup keys_at_once k_q8_0 v_q8_0 scale softcap window n_ring_blocks is_causal quantizes chunk has_sinks gates_columns latent_dim
// push:
// dispatch: x = n_heads / heads_per_workgroup, y = tokens / tokens_per_workgroup, rounded up; the tokens of a workgroup
//   are of one sequence
// subgroup: shuffle
// requires: full subgroups of 8 or more, or the _plain variant; lanes a power of two, at most the subgroup size, or 8;
//   heads_per_workgroup divides the group; head_dim a multiple of 8, with q8_0 of 32; to quantize,
//   values of heads_per_workgroup heads a multiple of 32 together
// numerics: float32 scores and sums over a float16 or q8_0 cache, the same for a token however the step is cut
// source: Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 128;
layout(constant_id = 1) const uint N_HEADS = 32;
layout(constant_id = 2) const uint N_KV_HEADS = 8;
layout(constant_id = 3) const uint HEAD_DIM = 128;
layout(constant_id = 4) const uint LANES = 16; // neighbouring lanes that take one key together
layout(constant_id = 5) const uint HEADS = 4;
layout(constant_id = 6) const uint TOKENS = 1;
layout(constant_id = 7) const uint AT_ONCE = 4; // keys whose loads are under way together
layout(constant_id = 8) const uint K_Q8_0 = 0;
layout(constant_id = 9) const uint V_Q8_0 = 0;
layout(constant_id = 10) const uint SCALE = 0x3db504f3; // of scores: 0.088, for a HEAD_DIM of 128
layout(constant_id = 11) const uint SOFTCAP = 0;        // of scores; 0: none
layout(constant_id = 12) const uint WINDOW = 0;         // keys that a token sees, the last ones; 0: all
layout(constant_id = 13) const uint N_RING_BLOCKS = 0;
layout(constant_id = 14) const uint IS_CAUSAL = 1; // 0: tokens see those behind them in the step, too, within WINDOW
layout(constant_id = 15) const uint QUANTIZES = 1; // y, to y_q16 and y_scales
layout(constant_id = 16) const uint CHUNK = 0; // tokens see only those of their own chunk of so many positions; 0: all
layout(constant_id = 17) const uint HAS_SINKS = 0;
layout(constant_id = 18) const uint GATES_COLUMNS = 0; // of a row of gates, (query | gate of each head | ...); 0: none
layout(constant_id = 19) const uint LATENT_DIM = 0;    // as in lib/attention.glsl
layout(std430, binding = 0) readonly buffer Q { vec4 q[]; };
layout(std430, binding = 3) writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 4) writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 5) writeonly buffer YScales { vec2 y_scales[]; };
layout(std430, binding = 8) readonly buffer Gates { vec4 gates[]; };
#define SINKS_BINDING 7
#define K_BINDING 1
#define V_BINDING 2
#define STEP_BINDING 6
#include "lib/step.glsl"
#include "lib/q16.glsl"
#include "lib/kvcache.glsl"
#include "lib/softcap.glsl"
#include "lib/seen.glsl"
#include "lib/attended.glsl"
void replace_newest_keys(uint base, uint end) {} // all are cached
void replace_newest_values(uint base, uint end) {}
#include "lib/attention.glsl"

void load_queries(uint row, uint head) {
  [[unroll]] for (uint i = 0; i < QUERIES; i++) {
    uint query_row = min(row + i / HEADS, n_rows - 1);
    [[unroll]] for (uint p = 0; p < PIECES; p++) {
      uint eight = lane + p * LANES;
      uint from = ((query_row * N_HEADS + head + i % HEADS) * EIGHTS + min(eight, EIGHTS - 1)) * 2;
      float factor = eight < EIGHTS ? uintBitsToFloat(SCALE) : 0.0;
      query[(i * PIECES + p) * 2] = q[from] * factor;
      query[(i * PIECES + p) * 2 + 1] = q[from + 1] * factor;
    }
  }
}

// four i of the workgroup's results: its row is out_row
vec4 result(uint out_row, uint head, uint i) {
  uint h = i / FOURS, of_head = head + h % HEADS;
  vec4 v = merged_four(i) / with_sink(merged_total(h), HAS_SINKS != 0 ? largest_of_teams(h) : 0.0, of_head);
  if (GATES_COLUMNS == 0) return v;
  return gated(v, gates[out_row * (GATES_COLUMNS / 4) + (2 * of_head + 1) * FOURS + i % FOURS]);
}

void main() {
  uint row = gl_WorkGroupID.y * TOKENS;
  if (row >= n_rows) return;
  for (uint t = 0; t < TOKENS; t++) {
    uint there = min(row + t, n_rows - 1); // rows that are not there repeat
    first_key[t] = first_seen(there);
    end_key[t] = end_seen(there);
  }
#ifdef PLAIN
  uint self = gl_LocalInvocationIndex;
#else
  uint self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
#endif
  lane = self % LANES;
  team = self / LANES;
  uint head = gl_WorkGroupID.x * HEADS;
  uint table = rows[row].z, kv_head = head / (N_HEADS / N_KV_HEADS), end = end_key[TOKENS - 1]; // the last sees the most
  // a token's keys come to the same teams whatever its neighbours are
  uint first = SEES_LAST ? first_key[0] / STRIDE * STRIDE : 0;
  load_keys(table, kv_head, first + team, end);
  load_values(table, kv_head, first + team, end);
  load_queries(row, head);
  attend(table, kv_head, first, end);
  if (QUANTIZES == 0) {
    for (uint i = self; i < OUT_FOURS; i += LOCAL_SIZE) {
      uint out_row = row + i / (HEADS * FOURS);
      if (out_row >= n_rows) break;
      y[out_row * N_HEADS * FOURS + head * FOURS + i % (HEADS * FOURS)] = result(out_row, head, i);
    }
    return;
  }
#ifdef PLAIN
  for (uint block = self; block < OUT_FOURS / 8; block += LOCAL_SIZE) {
    uint out_row = row + 8 * block / (HEADS * FOURS);
    uint first = head * FOURS + 8 * block % (HEADS * FOURS);
    if (out_row >= n_rows) break;
    vec4 results[8];
    [[unroll]] for (uint k = 0; k < 8; k++) {
      results[k] = result(out_row, head, 8 * block + k);
      y[out_row * N_HEADS * FOURS + first + k] = results[k];
    }
    store_q16_block(out_row, N_HEADS * VALUE_DIM / 32, first / 8, results);
  }
#else
  for (uint i = self; i < OUT_FOURS; i += LOCAL_SIZE) {
    uint out_row = row + i / (HEADS * FOURS);
    uint four = head * FOURS + i % (HEADS * FOURS);
    if (out_row >= n_rows) break; // eight lanes of a block leave together
    vec4 v = result(out_row, head, i);
    y[out_row * N_HEADS * FOURS + four] = v;
    store_q16(out_row, N_HEADS * VALUE_DIM / 32, four / 8, v);
  }
#endif
}
