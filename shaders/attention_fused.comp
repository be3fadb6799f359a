// attention_fused: head_norm, rope, the store into the cache and attention for one token, in one dispatch
// bindings: qkv rope_table k_cache v_cache partials y y_q16 y_scales step chain failure head_weights q_factors sinks
// constants: local_size n_heads n_kv_heads head_dim lanes heads_per_workgroup rope_dims is_interleaved keys_at_once k_q8_0 v_q8_0 most_polls scale softcap window table quantizes head_weights has_q_factors norms eps values is_newest_cached has_gates chunk has_sinks latent_dim
// push: n_parts arrivals link n_awaited
// dispatch: x = n_heads / heads_per_workgroup * n_parts: the context is cut into n_parts parts at most
// subgroup: shuffle
// requires: full subgroups of 8 or more; lanes a power of two, at most the subgroup size;
//   heads_per_workgroup divides the group; local_size a multiple of 8; head_dim as in attention
// numerics: those of head_norm, rope and attention; parts are merged in the same order, whichever ends last
// source: Dao et al. 2023, Flash-Decoding
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require
#ifdef MEMORY_MODEL
#pragma use_vulkan_memory_model
#extension GL_KHR_memory_scope_semantics : require
#endif
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
layout(constant_id = 11) const uint MOST_POLLS = 0; // of a wait; 0: there is none
layout(constant_id = 12) const uint SCALE = 0x3db504f3; // as in attention.comp
layout(constant_id = 13) const uint SOFTCAP = 0;
layout(constant_id = 14) const uint WINDOW = 0;
layout(constant_id = 15) const uint TABLE = 0;
layout(constant_id = 16) const uint QUANTIZES = 1;
layout(constant_id = 17) const uint HEAD_WEIGHTS = 0; // as in lib/rotate.glsl
layout(constant_id = 18) const uint HAS_Q_FACTORS = 0;
layout(constant_id = 19) const uint NORMS = 0; // whether queries and keys are divided by their root mean squares
layout(constant_id = 20) const uint EPS = 0x3727c5ac; // 1e-5
layout(constant_id = 21) const uint VALUES = 0; // 1: divided by their root mean square; 2: the keys divided by theirs
layout(constant_id = 22) const uint IS_NEWEST_CACHED = 0; // whether the new token's key and value are in the cache, not in qkv
layout(constant_id = 23) const uint HAS_GATES = 0;  // whether HEAD_DIM gates lie behind each head of the queries
layout(constant_id = 24) const uint CHUNK = 0;      // as in attention.comp
layout(constant_id = 25) const uint HAS_SINKS = 0;
layout(constant_id = 26) const uint LATENT_DIM = 0;
const uint TOKENS = 1;
layout(push_constant) uniform Push {
  uint n_parts;
  uint arrivals; // where the chain counts this layer's parts that have ended, by workgroups of heads
  uint link;
  uint n_awaited;
};
// of each head and part: (maximum, sum of weights, unused), VALUE_DIM weighted values
layout(std430, binding = 4) coherent buffer Partials { vec4 partials[]; };
layout(std430, binding = 5) coherent writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 6) coherent writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 7) coherent writeonly buffer YScales { vec2 y_scales[]; };
#define QKV_BINDING 0
#define TABLE_BINDING 1
#define K_BINDING 2
#define V_BINDING 3
#define STEP_BINDING 8
#define CHAIN_BINDING 9
#define FAILURE_BINDING 10
#define HEAD_WEIGHTS_BINDING 11
#define Q_FACTORS_BINDING 12
#define SINKS_BINDING 13
#include "lib/step.glsl"
#include "lib/chain.glsl"
#include "lib/q16.glsl"
#include "lib/rotate.glsl"
#include "lib/kvcache.glsl"
#include "lib/softcap.glsl"
#include "lib/attended.glsl"

// the new token's key and value, as they are cached; it is not read from there, since another workgroup stores it
shared uvec2 new_key[HEAD_DIM / 4], new_value[HEAD_DIM / 4];

#define NEWEST rows[0].y
#define FIRST (WINDOW != 0 ? max(NEWEST + 1, WINDOW) - WINDOW : (CHUNK != 0 ? NEWEST / CHUNK * CHUNK : 0))
const bool SEES_LAST = WINDOW != 0 || CHUNK != 0;
void replace_newest_keys(uint base, uint end);
void replace_newest_values(uint base, uint end);
#include "lib/attention.glsl"

uvec4 new_eight(uvec2 first, uvec2 second, uint is_q8_0) {
  return is_q8_0 != 0 ? uvec4(first.x, second.x, first.y, 0) : uvec4(first, second);
}

// put the new token's key or value in the place of what was loaded for it
void replace_newest_keys(uint base, uint end) {
  if (IS_NEWEST_CACHED != 0 || end != NEWEST + 1) return;
  [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
    if (base + i * TEAMS < NEWEST) continue; // those beyond it do not count
    [[unroll]] for (uint p = 0; p < PIECES; p++) {
      uint eight = min(lane + p * LANES, EIGHTS - 1);
      k[i * PIECES + p] = new_eight(new_key[2 * eight], new_key[2 * eight + 1], K_Q8_0);
    }
  }
}

void replace_newest_values(uint base, uint end) {
  if (IS_NEWEST_CACHED != 0 || end != NEWEST + 1) return;
  [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
    if (base + i * TEAMS < NEWEST) continue;
    [[unroll]] for (uint p = 0; p < V_PIECES; p++) {
      uint eight = min(lane + p * LANES, EIGHTS - 1);
      v[i * V_PIECES + p] = new_eight(new_value[2 * eight], new_value[2 * eight + 1], V_Q8_0);
    }
  }
}

#define PIECE 64 // keys that are worth a workgroup
#define MAX_PARTS 128
const uint GROUPS = N_HEADS / HEADS;
const uint GROUP_HEADS = N_HEADS / N_KV_HEADS; // that share a key head
const uint PARTIAL = FOURS + 1;
const uint Q_FOURS = HEAD_DIM / 4;
const uint Q_STRIDE = HEAD_DIM * (1 + HAS_GATES);
const uint SLICES = LOCAL_SIZE > OUT_FOURS ? LOCAL_SIZE / OUT_FOURS : 1; // of the parts, which are summed up side by side
shared vec4 rotated_queries[HEADS * Q_FOURS];
shared vec2 part_sums[HEADS * MAX_PARTS]; // of each head's parts: maximum, sum of weights
shared float part_share[HEADS * MAX_PARTS]; // what a part's values count for in the head's output
shared bool is_last;
shared float norm_factor[HEADS + 2]; // of the workgroup's queries, of the new key and value

uint place_of_key(uint kv_head) { return N_HEADS * Q_STRIDE + kv_head * HEAD_DIM; }
uint place_of_value(uint kv_head) { return N_HEADS * Q_STRIDE + (N_KV_HEADS + kv_head) * HEAD_DIM; }

// a subgroup takes a head
void norm_heads(uint head, bool has_newest) {
  for (uint h = gl_SubgroupID; h < HEADS + (has_newest ? 1 + VALUES % 2 : 0); h += gl_NumSubgroups) {
    uint kv_head = head / GROUP_HEADS;
    uint from = h < HEADS ? (head + h) * Q_STRIDE : (h == HEADS ? place_of_key(kv_head) : place_of_value(kv_head));
    float squares = 0.0;
    for (uint d = gl_SubgroupInvocationID; d < HEAD_DIM; d += gl_SubgroupSize) squares += qkv[from + d] * qkv[from + d];
    [[unroll]] for (uint m = 0; m < 7; m++) {
      if ((1u << m) >= gl_SubgroupSize) break;
      squares += subgroupShuffleXor(squares, 1u << m);
    }
    norm_factor[h] = inversesqrt(squares / float(HEAD_DIM) + uintBitsToFloat(EPS));
  }
  barrier();
}

// queries into registers, the new key and value into shared memory and, by one workgroup of each key head, the cache
void rope(uint self, uint head, bool has_newest) {
  uint position = NEWEST, kv_head = head / GROUP_HEADS;
  uint unit = unit_of(rows[0].z, kv_head, position);
  bool stores = has_newest && head % GROUP_HEADS == 0;
  if (NORMS != 0 || VALUES != 0) norm_heads(head, has_newest);
  for (uint i = self; i < HEADS * Q_FOURS; i += LOCAL_SIZE) {
    vec4 v = rotated_four((head + i / Q_FOURS) * Q_STRIDE, 4 * (i % Q_FOURS), position, QUERY);
    rotated_queries[i] = NORMS != 0 ? v * norm_factor[i / Q_FOURS] : v;
  }
  for (uint i = self; has_newest && i < 2 * Q_FOURS; i += LOCAL_SIZE) {
    bool is_value = i >= Q_FOURS;
    uint four = i % Q_FOURS;
    uint from = is_value && VALUES != 2 ? place_of_value(kv_head) : place_of_key(kv_head);
    vec4 v = is_value ? four_of_head(from, 4 * four) : rotated_four(from, 4 * four, position, KEY);
    if (NORMS != 0 && !is_value) v *= norm_factor[HEADS];
    if (VALUES != 0 && is_value) v *= norm_factor[HEADS + VALUES % 2];
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
      float factor = eight < EIGHTS ? uintBitsToFloat(SCALE) : 0.0;
      query[(h * PIECES + p) * 2] = rotated_queries[h * Q_FOURS + 2 * min(eight, EIGHTS - 1)] * factor;
      query[(h * PIECES + p) * 2 + 1] = rotated_queries[h * Q_FOURS + 2 * min(eight, EIGHTS - 1) + 1] * factor;
    }
  }
}

// leaves this part's share; true for the workgroup that is the last of its heads to do so
bool leave_partial(uint self, uint head, uint part, uint n_used) {
  for (uint i = self; i < OUT_FOURS; i += LOCAL_SIZE) {
    uint h = i / FOURS, to = ((head + h) * n_parts + part) * PARTIAL;
    partials[to + 1 + i % FOURS] = merged_four(i);
    if (i % FOURS == 0) partials[to] = vec4(largest_of_teams(h), merged_total(h), 0.0, 0.0);
  }
  workgroup_barrier();
  if (gl_LocalInvocationIndex == 0) {
    release();
    is_last = atomicAdd(ended[arrivals + head / HEADS], 1u) == n_used - 1;
    acquire();
  }
  workgroup_barrier();
  return is_last;
}

// part_share of all parts: exp(maximum - largest maximum) / sum of all weights; a subgroup takes a head
void share_parts(uint head, uint n_used) {
  for (uint h = gl_SubgroupID; h < HEADS; h += gl_NumSubgroups) {
    vec2 all = vec2(-1e30, 0.0);
    for (uint p = gl_SubgroupInvocationID; p < n_used; p += gl_SubgroupSize) {
      vec2 one = partials[((head + h) * n_parts + p) * PARTIAL].xy;
      part_sums[h * MAX_PARTS + p] = one;
      float most = max(all.x, one.x);
      all = vec2(most, all.y * exp(all.x - most) + one.y * exp(one.x - most));
    }
    [[unroll]] for (uint m = 0; m < 7; m++) {
      if ((1u << m) >= gl_SubgroupSize) break;
      vec2 other = subgroupShuffleXor(all, 1u << m);
      float most = max(all.x, other.x);
      all = vec2(most, all.y * exp(all.x - most) + other.y * exp(other.x - most));
    }
    all.y = with_sink(all.y, all.x, head + h);
    for (uint p = gl_SubgroupInvocationID; p < n_used; p += gl_SubgroupSize) {
      vec2 one = part_sums[h * MAX_PARTS + p];
      part_share[h * MAX_PARTS + p] = exp(one.x - all.x) / all.y;
    }
  }
  barrier();
}

#define PARTS_AT_ONCE 8

// leaves SLICES sums of each four of the output in team_sum
void merge_parts(uint self, uint head, uint n_used) {
  for (uint i = self; i < OUT_FOURS * SLICES; i += LOCAL_SIZE) {
    uint four = i % OUT_FOURS, h = four / FOURS;
    uint from = (head + h) * n_parts * PARTIAL + 1 + four % FOURS;
    vec4 merged = vec4(0.0);
    for (uint first = i / OUT_FOURS; first < n_used; first += PARTS_AT_ONCE * SLICES) {
      vec4 values[PARTS_AT_ONCE];
      [[unroll]] for (uint j = 0; j < PARTS_AT_ONCE; j++) {
        values[j] = partials[from + min(first + j * SLICES, n_used - 1) * PARTIAL];
      }
      [[unroll]] for (uint j = 0; j < PARTS_AT_ONCE; j++) {
        uint p = first + j * SLICES;
        if (p < n_used) merged += part_share[h * MAX_PARTS + p] * values[j];
      }
    }
    team_sum[i] = merged;
  }
  barrier();
}

vec4 merged_slices(uint four) {
  vec4 merged = vec4(0.0);
  for (uint s = 0; s < SLICES; s++) merged += team_sum[s * OUT_FOURS + four];
  return merged;
}

// of the only part
float own_total(uint h, uint head) {
  return with_sink(merged_total(h), HAS_SINKS != 0 ? largest_of_teams(h) : 0.0, head);
}

void attend_part(uint head, uint part, uint n_used, uint part_keys) {
  uint self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  lane = self % LANES;
  team = self / LANES;
  first_key[0] = FIRST;
  end_key[0] = NEWEST + 1;
  uint table = rows[0].z, kv_head = head / GROUP_HEADS;
  uint first = FIRST + part * part_keys, end = min(first + part_keys, NEWEST + 1);
  load_keys(table, kv_head, first + team, end); // on their way while the new token's share comes
  load_values(table, kv_head, first + team, end);
  await_link();
  rope(self, head, IS_NEWEST_CACHED == 0 && part == n_used - 1);
  attend(table, kv_head, first, end);
  if (n_used > 1) {
    if (!leave_partial(self, head, part, n_used)) return;
    share_parts(head, n_used);
    merge_parts(self, head, n_used);
  }
  for (uint i = self; i < OUT_FOURS; i += LOCAL_SIZE) {
    uint four = head * FOURS + i, h = i / FOURS;
    vec4 result = n_used > 1 ? merged_slices(i) : merged_four(i) / own_total(h, head + h);
    if (HAS_GATES != 0) result = gated(result, four_of_head((head + h) * Q_STRIDE + HEAD_DIM, 4 * (i % FOURS)));
    y[four] = result;
    if (QUANTIZES != 0) store_q16(0, N_HEADS * VALUE_DIM / 32, four / 8, result);
  }
}

void main() {
  uint n_all = NEWEST + 1 - FIRST;
  // as many parts as are worth it, of equal numbers of steps; a merge costs more than a second piece
  uint n_wanted = n_all <= 2 * PIECE ? 1 : min((n_all + PIECE - 1) / PIECE, n_parts);
  uint part_keys = ((n_all + n_wanted - 1) / n_wanted + STRIDE - 1) / STRIDE * STRIDE;
  uint n_used = (n_all + part_keys - 1) / part_keys;
  uint part = gl_WorkGroupID.x / GROUPS;
  if (part < n_used) attend_part(gl_WorkGroupID.x % GROUPS * HEADS, part, n_used, part_keys);
  end_link();
}
