// attention_fused: rope, the store into the cache and attention for one token, in one dispatch
// bindings: qkv rope_table k_cache v_cache partials y y_q16 y_scales step chain
// constants: local_size n_heads n_kv_heads head_dim lanes heads_per_workgroup rope_dims is_interleaved keys_at_once k_q8_0 v_q8_0 chained
// push: n_parts arrivals link n_awaited
// dispatch: x = n_heads / heads_per_workgroup * n_parts: the context is cut into n_parts parts at most
// requires: subgroup shuffle, subgroups of 8 or more; lanes a power of two, at most the subgroup size;
//   heads_per_workgroup divides the group; local_size a multiple of 8
// numerics: those of rope and attention; parts are merged in their order, whichever ends last
// source: Dao et al. 2023, Flash-Decoding
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 128;
layout(constant_id = 1) const uint N_HEADS = 32;
layout(constant_id = 2) const uint N_KV_HEADS = 8;
layout(constant_id = 3) const uint HEAD_DIM = 128;
layout(constant_id = 4) const uint LANES = 16; // neighbouring lanes that take one key together
layout(constant_id = 5) const uint HEADS = 4;
layout(constant_id = 6) const uint ROPE_DIMS = 128;
layout(constant_id = 7) const uint IS_INTERLEAVED = 1;
layout(constant_id = 8) const uint AT_ONCE = 4; // keys whose loads are under way together
layout(constant_id = 9) const uint K_Q8_0 = 0;
layout(constant_id = 10) const uint V_Q8_0 = 0;
layout(constant_id = 11) const uint CHAINED = 0;
const uint TOKENS = 1;
layout(push_constant) uniform Push {
  uint n_parts;
  uint arrivals; // where the chain counts this layer's parts that have ended, by workgroups of heads
  uint link;
  uint n_awaited;
};
// of each head and part: maximum, sum of weights, HEAD_DIM weighted values
layout(std430, binding = 4) coherent buffer Partials { float partials[]; };
layout(std430, binding = 5) coherent writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 6) coherent writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 7) coherent writeonly buffer YScales { vec2 y_scales[]; };
#define QKV_BINDING 0
#define TABLE_BINDING 1
#define K_BINDING 2
#define V_BINDING 3
#define STEP_BINDING 8
#define CHAIN_BINDING 9
#include "lib/step.glsl"
#include "lib/chain.glsl"
#include "lib/q16.glsl"
#include "lib/rotate.glsl"
#include "lib/kvcache.glsl"

// the new token's key and value, as they are cached; it is not read from there, since another workgroup stores it
shared uvec2 new_key[HEAD_DIM / 4], new_value[HEAD_DIM / 4];

#define NEWEST rows[0].y
void replace_newest(uint base, uint end);
#include "lib/attention.glsl"

uvec4 new_eight(uvec2 first, uvec2 second, uint is_q8_0) {
  return is_q8_0 != 0 ? uvec4(first.x, second.x, first.y, 0) : uvec4(first, second);
}

// puts the new token's key and value in the place of what was loaded for it
void replace_newest(uint base, uint end) {
  if (end != NEWEST + 1) return;
  [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
    if (base + i * TEAMS < NEWEST) continue; // those beyond it do not count
    [[unroll]] for (uint p = 0; p < PIECES; p++) {
      uint eight = min(lane + p * LANES, EIGHTS - 1);
      k[i * PIECES + p] = new_eight(new_key[2 * eight], new_key[2 * eight + 1], K_Q8_0);
      v[i * PIECES + p] = new_eight(new_value[2 * eight], new_value[2 * eight + 1], V_Q8_0);
    }
  }
}

#define PIECE 64 // keys that are worth a workgroup
#define MAX_PARTS 128
const uint FOURS = HEAD_DIM / 4;
const uint GROUPS = N_HEADS / HEADS;
const uint GROUP_HEADS = N_HEADS / N_KV_HEADS; // that share a key head
const uint PARTIAL = HEAD_DIM + 2;
shared vec4 rotated_queries[HEADS * FOURS]; // later the results
shared vec2 part_sums[HEADS * MAX_PARTS];   // of each head's parts: maximum, sum of weights
shared float part_share[HEADS * MAX_PARTS]; // what a part's values count for in the head's output
shared bool is_last;

// queries into registers, the new key and value into shared memory and, by one workgroup of each key head, the cache
void rope(uint self, uint head, bool has_newest) {
  uint position = NEWEST, kv_head = head / GROUP_HEADS;
  uint unit = block_table[rows[0].z + position / KV_BLOCK] * N_KV_HEADS + kv_head;
  bool stores = has_newest && head % GROUP_HEADS == 0;
  for (uint i = self; i < HEADS * FOURS; i += LOCAL_SIZE) {
    rotated_queries[i] = four_of_head((head + i / FOURS) * HEAD_DIM, 4 * (i % FOURS), position, true);
  }
  for (uint i = self; has_newest && i < 2 * FOURS; i += LOCAL_SIZE) {
    bool is_value = i >= FOURS;
    uint four = i % FOURS;
    uint from = (N_HEADS + kv_head + (is_value ? N_KV_HEADS : 0)) * HEAD_DIM;
    vec4 v = four_of_head(from, 4 * four, position, !is_value);
    uvec2 cached = is_value ? cached_four(v, V_Q8_0) : cached_four(v, K_Q8_0);
    if (is_value) new_value[four] = cached;
    else new_key[four] = cached;
    if (stores && is_value) store_value(unit, position % KV_BLOCK, four, cached);
    if (stores && !is_value) store_key(unit, position % KV_BLOCK, four, cached);
  }
  barrier();
  [[unroll]] for (uint h = 0; h < HEADS; h++) {
    [[unroll]] for (uint p = 0; p < PIECES; p++) {
      uint eight = lane + p * LANES;
      float factor = eight < EIGHTS ? inversesqrt(float(HEAD_DIM)) : 0.0;
      query[(h * PIECES + p) * 2] = rotated_queries[h * FOURS + 2 * min(eight, EIGHTS - 1)] * factor;
      query[(h * PIECES + p) * 2 + 1] = rotated_queries[h * FOURS + 2 * min(eight, EIGHTS - 1) + 1] * factor;
    }
  }
}

// leaves this part's share; true for the workgroup that is the last of its heads to do so
bool leave_partial(uint self, uint head, uint part, uint n_used) {
  for (uint d = self; d < OUTPUTS; d += LOCAL_SIZE) {
    vec2 merged = merged_teams(d);
    uint to = ((head + d / HEAD_DIM) * n_parts + part) * PARTIAL;
    partials[to + 2 + d % HEAD_DIM] = merged.y;
    if (d % HEAD_DIM == 0) {
      partials[to] = largest_of_teams(d / HEAD_DIM);
      partials[to + 1] = merged.x;
    }
  }
  memoryBarrierBuffer();
  barrier();
  if (gl_LocalInvocationIndex == 0) is_last = atomicAdd(ended[arrivals + head / HEADS], 1u) == n_used - 1;
  barrier();
  memoryBarrierBuffer();
  return is_last;
}

// part_share of all parts: exp(maximum - largest maximum) / sum of all weights
void share_parts(uint self, uint head, uint n_used) {
  for (uint i = self; i < HEADS * n_used; i += LOCAL_SIZE) {
    uint from = ((head + i / n_used) * n_parts + i % n_used) * PARTIAL;
    part_sums[i] = vec2(partials[from], partials[from + 1]);
  }
  barrier();
  for (uint i = self; i < HEADS * n_used; i += LOCAL_SIZE) {
    uint first = i / n_used * n_used;
    float most = part_sums[first].x, total = 0.0;
    for (uint p = 1; p < n_used; p++) most = max(most, part_sums[first + p].x);
    for (uint p = 0; p < n_used; p++) total += exp(part_sums[first + p].x - most) * part_sums[first + p].y;
    part_share[i] = exp(part_sums[i].x - most) / total;
  }
  barrier();
}

#define PARTS_AT_ONCE 8

float merged_parts(uint d, uint head, uint n_used) {
  uint from = (head + d / HEAD_DIM) * n_parts * PARTIAL + 2 + d % HEAD_DIM;
  float merged = 0.0;
  for (uint first = 0; first < n_used; first += PARTS_AT_ONCE) {
    float values[PARTS_AT_ONCE];
    [[unroll]] for (uint i = 0; i < PARTS_AT_ONCE; i++) values[i] = partials[from + min(first + i, n_used - 1) * PARTIAL];
    [[unroll]] for (uint i = 0; i < PARTS_AT_ONCE; i++) {
      if (first + i < n_used) merged += part_share[d / HEAD_DIM * n_used + first + i] * values[i];
    }
  }
  return merged;
}

void attend_part(uint head, uint part, uint n_used, uint part_keys) {
  uint self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  lane = self % LANES;
  team = self / LANES;
  n_keys[0] = NEWEST + 1;
  uint table = rows[0].z, kv_head = head / GROUP_HEADS;
  uint first = part * part_keys, end = min(first + part_keys, n_keys[0]);
  load_cached(table, kv_head, first + team, end); // on its way while the new token's share comes
  await_link();
  rope(self, head, part == n_used - 1);
  attend(table, kv_head, first, end);
  if (n_used > 1 && !leave_partial(self, head, part, n_used)) return;
  if (n_used > 1) share_parts(self, head, n_used);
  for (uint d = self; d < OUTPUTS; d += LOCAL_SIZE) {
    vec2 merged = merged_teams(d);
    rotated_queries[d / 4][d % 4] = n_used > 1 ? merged_parts(d, head, n_used) : merged.y / merged.x;
  }
  barrier();
  for (uint i = self; i < OUTPUTS / 4; i += LOCAL_SIZE) {
    uint four = head * FOURS + i;
    y[four] = rotated_queries[i];
    store_q16(0, N_HEADS * HEAD_DIM / 32, four / 8, rotated_queries[i]);
  }
}

void main() {
  uint n_pieces = NEWEST / PIECE + 1;
  // a merge costs more than a second piece
  uint part_pieces = n_pieces <= 2 ? 2 : (n_pieces + n_parts - 1) / n_parts;
  uint n_used = (n_pieces + part_pieces - 1) / part_pieces;
  uint part = gl_WorkGroupID.x / GROUPS;
  if (part < n_used) attend_part(gl_WorkGroupID.x % GROUPS * HEADS, part, n_used, part_pieces * PIECE);
  end_link();
}
