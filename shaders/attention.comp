// attention: attention of a few queries (heads, tokens) that share a key head, over the cached tokens that they see
// bindings: q k_cache v_cache y y_q16 y_scales step sinks gates partials arrived
// constants: local_size n_heads n_kv_heads head_dim lanes heads_per_workgroup tokens_per_workgroup keys_at_once k_q8_0 v_q8_0 scale softcap window table ahead quantizes chunk has_sinks gates_columns latent_dim part_keys log2_parts n_sharing most_parts first_partial
// push:
// dispatch: x = n_heads / heads_per_workgroup * n_sharing: so many workgroups take the parts of a token's keys in turn; the
//   last that ends puts them together; y = tokens / tokens_per_workgroup, rounded up; the tokens of a workgroup are of one
//   sequence; where n_sharing is more than 1, it has one
// subgroup: shuffle
// requires: full subgroups of 8 or more, or the _plain variant; lanes a power of two, at most the subgroup size, or 8;
//   heads_per_workgroup divides the group; head_dim a multiple of 8, with q8_0 of 32; to quantize,
//   values of heads_per_workgroup heads a multiple of 32 together; part_keys a multiple of the keys that a workgroup takes
//   together (keys_at_once * local_size / lanes); arrived is 0, and is so again at the end
// numerics: float32 scores and sums over a float16 or q8_0 cache, the same for a token however the step is cut, whatever
//   its neighbours are and however many workgroups share its keys
// source: Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135; Dao et al. 2023, Flash-Decoding
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
layout(constant_id = 13) const uint TABLE = 0;
layout(constant_id = 14) const uint AHEAD = 0; // lib/seen.glsl
layout(constant_id = 15) const uint QUANTIZES = 1; // y, to y_q16 and y_scales
layout(constant_id = 16) const uint CHUNK = 0; // tokens see only those of their own chunk of so many positions; 0: all
layout(constant_id = 17) const uint HAS_SINKS = 0;
layout(constant_id = 18) const uint GATES_COLUMNS = 0; // of a row of gates, (query | gate of each head | ...); 0: none
layout(constant_id = 19) const uint LATENT_DIM = 0;    // as in lib/attention.glsl
layout(constant_id = 20) const uint PART_KEYS = 128; // as in lib/parts.glsl
layout(constant_id = 21) const uint LOG2_PARTS = 3;
layout(constant_id = 22) const uint N_SHARING = 1;     // workgroups that share the keys of a token
layout(constant_id = 23) const uint MOST_PARTS = 24;   // that a token may see, if N_SHARING is more than 1
layout(constant_id = 24) const uint FIRST_PARTIAL = 0; // where partials begin
layout(std430, binding = 0) readonly buffer Q { vec4 q[]; };
layout(std430, binding = 3) writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 4) writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 5) writeonly buffer YScales { vec2 y_scales[]; };
layout(std430, binding = 8) readonly buffer Gates { vec4 gates[]; };
// of each token, head and part: (maximum, sum of weights, unused), VALUE_DIM weighted values
layout(std430, binding = 9) coherent buffer Partials { vec4 partials[]; };
layout(std430, binding = 10) coherent buffer Arrived { uint arrived[]; }; // of each token and workgroup of heads
#define SINKS_BINDING 7
#define K_BINDING 1
#define V_BINDING 2
#define STEP_BINDING 6
#include "lib/step.glsl"
#include "lib/store_form.glsl"
#include "lib/kvcache.glsl"
#include "lib/softcap.glsl"
#include "lib/seen.glsl"
#include "lib/attended.glsl"
void replace_newest_keys(uint base, uint end) {} // all are cached
void replace_newest_values(uint base, uint end) {}
#include "lib/attention.glsl"
#include "lib/parts.glsl"

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

#define PARTS_AT_ONCE 8
const uint GROUPS = N_HEADS / HEADS;
const uint PARTIAL = FOURS + 1;
const uint OWN_FOURS = (OUT_FOURS + LOCAL_SIZE - 1) / LOCAL_SIZE; // of the results, that an invocation puts together
shared bool is_last;

uint self;
vec2 all_weights[OWN_FOURS]; // of four self + n * LOCAL_SIZE: maximum and sum of weights of its query, and weighted values
vec4 all_values[OWN_FOURS];

void add_own_part() {
  [[unroll]] for (uint n = 0; n < OWN_FOURS; n++) {
    uint i = self + n * LOCAL_SIZE;
    if (i >= OUT_FOURS) continue;
    add_part(all_weights[n], all_values[n], vec2(largest_of_teams(i / FOURS), merged_total(i / FOURS)), merged_four(i));
  }
}

uint place_of_part(uint row, uint head, uint part) {
  return FIRST_PARTIAL + ((row * N_HEADS + head) * MOST_PARTS + part) * PARTIAL;
}

void leave_part(uint row, uint head, uint part) {
  for (uint i = self; i < OUT_FOURS; i += LOCAL_SIZE) {
    uint h = i / FOURS, to = place_of_part(row, head + h, part);
    partials[to + 1 + i % FOURS] = merged_four(i);
    if (i % FOURS == 0) partials[to] = vec4(largest_of_teams(h), merged_total(h), 0.0, 0.0);
  }
}

// true for the last of n workgroups that leave parts of a token
bool is_last_to_arrive(uint row, uint group, uint n) {
  memoryBarrierBuffer();
  barrier();
  memoryBarrierBuffer();
  if (gl_LocalInvocationIndex == 0) {
    is_last = atomicAdd(arrived[row * GROUPS + group], 1u) == n - 1;
    if (is_last) atomicExchange(arrived[row * GROUPS + group], 0u);
  }
  memoryBarrierBuffer();
  barrier();
  memoryBarrierBuffer();
  return is_last;
}

void add_left_parts(uint row, uint head, uint n_used) {
  [[unroll]] for (uint n = 0; n < OWN_FOURS; n++) {
    uint i = self + n * LOCAL_SIZE;
    if (i >= OUT_FOURS) continue;
    uint from = place_of_part(row, head + i / FOURS, 0);
    for (uint first = 0; first < n_used; first += PARTS_AT_ONCE) {
      vec2 part[PARTS_AT_ONCE];
      vec4 part_values[PARTS_AT_ONCE];
      [[unroll]] for (uint j = 0; j < PARTS_AT_ONCE; j++) {
        uint place = from + min(first + j, n_used - 1) * PARTIAL;
        part[j] = partials[place].xy;
        part_values[j] = partials[place + 1 + i % FOURS];
      }
      [[unroll]] for (uint j = 0; j < PARTS_AT_ONCE; j++) {
        if (first + j < n_used) add_part(all_weights[n], all_values[n], part[j], part_values[j]);
      }
    }
  }
}

// four i of the workgroup's results: its row is out_row
vec4 result(uint out_row, uint head, uint i) {
  vec4 v = team_sum[i];
  if (GATES_COLUMNS == 0) return v;
  return gated(v, gates[out_row * (GATES_COLUMNS / 4) + (2 * (head + i / FOURS % HEADS) + 1) * FOURS + i % FOURS]);
}

void store_results(uint row, uint head) {
  [[unroll]] for (uint n = 0; n < OWN_FOURS; n++) {
    uint i = self + n * LOCAL_SIZE;
    if (i < OUT_FOURS) team_sum[i] = all_values[n] / with_sink(all_weights[n].y, all_weights[n].x, head + i / FOURS % HEADS);
  }
  barrier();
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
    store_form_of_block(out_row, N_HEADS * VALUE_DIM / 32, first / 8, results);
  }
#else
  for (uint i = self; i < OUT_FOURS; i += LOCAL_SIZE) {
    uint out_row = row + i / (HEADS * FOURS);
    uint four = head * FOURS + i % (HEADS * FOURS);
    if (out_row >= n_rows) break; // eight lanes of a block leave together
    vec4 v = result(out_row, head, i);
    y[out_row * N_HEADS * FOURS + four] = v;
    store_form(out_row, N_HEADS * VALUE_DIM / 32, four / 8, v);
  }
#endif
}

void main() {
  // the last parts, which are the longest, begin first
  uint row = gl_WorkGroupID.y * TOKENS, sharer = N_SHARING - 1 - gl_WorkGroupID.x / GROUPS;
  if (row >= n_rows) return;
  for (uint t = 0; t < TOKENS; t++) {
    uint there = min(row + t, n_rows - 1); // rows that are not there repeat
    first_key[t] = first_seen(there);
    end_key[t] = end_seen(there);
  }
  uint end = end_key[TOKENS - 1]; // the last sees the most
  // a token's keys come to the same teams whatever its neighbours are
  uint first = SEES_LAST ? first_key[0] / STRIDE * STRIDE : 0;
  uint first_part = part_of(first), n_used = part_of(end - 1) + 1 - first_part;
  if (sharer >= n_used) return;
#ifdef PLAIN
  self = gl_LocalInvocationIndex;
#else
  self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
#endif
  lane = self % LANES;
  team = self / LANES;
  uint group = gl_WorkGroupID.x % GROUPS, head = group * HEADS;
  uint table = rows[row].z, kv_head = head / (N_HEADS / N_KV_HEADS);
  [[unroll]] for (uint n = 0; n < OWN_FOURS; n++) {
    all_weights[n] = vec2(-1e30, 0.0);
    all_values[n] = vec4(0.0);
  }
  load_queries(row, head);
  for (uint part = sharer; part < n_used; part += N_SHARING) {
    uint from = max(first_of_part(first_part + part), first), to = min(first_of_part(first_part + part + 1), end);
    load_keys(table, kv_head, from + team, to);
    load_values(table, kv_head, from + team, to);
    attend(table, kv_head, from, to);
    if (N_SHARING == 1 || n_used == 1) add_own_part();
    else leave_part(row, head, part);
    barrier(); // the teams' sums have been read
  }
  if (N_SHARING > 1 && n_used > 1) {
    if (!is_last_to_arrive(row, group, min(n_used, N_SHARING))) return;
    add_left_parts(row, head, n_used);
  }
  store_results(row, head);
}
