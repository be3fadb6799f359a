// attention: causal attention of a few query heads that share a key head over splits of SPLIT cached tokens
// bindings: q k_cache v_cache partials y y_q16 y_scales step
// constants: local_size n_heads n_kv_heads head_dim lanes heads_per_workgroup loops
// push: max_splits
// dispatch: x = n_heads / heads_per_workgroup (times splits, where it does not loop), y = tokens
// requires: subgroup shuffle; lanes a power of two, at most the subgroup size; heads_per_workgroup divides the group
// numerics: float32 scores and sums over a float16 cache. The splits and their order are the same for every dispatch:
//   loops = 1 (prefill) merges them one after another and writes y; loops = 0 (decode) leaves each split's maximum,
//   sum of weights and weighted values in `partials`, which attention_merge merges in the same order.
// source: Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2023, Flash-Decoding
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
layout(constant_id = 6) const uint LOOPS = 0;
layout(push_constant) uniform Push { uint max_splits; };
layout(std430, binding = 0) readonly buffer Q { vec4 q[]; };
layout(std430, binding = 1) readonly buffer KCache { uvec4 k_cache[]; };
layout(std430, binding = 2) readonly buffer VCache { uvec4 v_cache[]; };
layout(std430, binding = 3) writeonly buffer Partials { float partials[]; };
layout(std430, binding = 4) writeonly buffer Y { vec4 y[]; };
layout(std430, binding = 5) writeonly buffer YQ16 { uint y_q16[]; };
layout(std430, binding = 6) writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 7
#include "lib/step.glsl"
#include "lib/q16.glsl"

#define SPLIT 64
#define AT_ONCE 4 // keys whose loads are under way together
const uint EIGHTS = HEAD_DIM / 8;                   // uvec4 of a cached row
const uint PIECES = (EIGHTS + LANES - 1) / LANES;   // of them, a lane's
const uint TEAMS = LOCAL_SIZE / LANES;              // keys that the workgroup takes at a time
const uint OUTPUTS = HEADS * HEAD_DIM;
const uint OWN = (OUTPUTS + LOCAL_SIZE - 1) / LOCAL_SIZE; // outputs that an invocation merges

shared float team_largest[TEAMS * HEADS];
shared float team_total[TEAMS * HEADS];
shared float team_sum[TEAMS * OUTPUTS];
shared vec4 result[OUTPUTS / 4];

uint lane, team;
vec4 query[HEADS * PIECES * 2];
float largest[HEADS], total[HEADS];
vec4 sum[HEADS * PIECES * 2];

uint cached_row(uint table, uint position, uint kv_head) {
  return (block_table[table + position / KV_BLOCK] * N_KV_HEADS + kv_head) * KV_BLOCK + position % KV_BLOCK;
}

vec4 first_half(uvec4 eight) { return vec4(unpackHalf2x16(eight.x), unpackHalf2x16(eight.y)); }
vec4 second_half(uvec4 eight) { return vec4(unpackHalf2x16(eight.z), unpackHalf2x16(eight.w)); }

void load_query(uint row, uint head) {
  for (uint h = 0; h < HEADS; h++) {
    for (uint p = 0; p < PIECES; p++) {
      uint eight = lane + p * LANES;
      uint from = ((row * N_HEADS + head + h) * EIGHTS + min(eight, EIGHTS - 1)) * 2;
      float factor = eight < EIGHTS ? inversesqrt(float(HEAD_DIM)) : 0.0;
      query[(h * PIECES + p) * 2] = q[from] * factor;
      query[(h * PIECES + p) * 2 + 1] = q[from + 1] * factor;
    }
  }
}

// the team's share of a split, into largest, total and sum
void attend(uint table, uint kv_head, uint first, uint end) {
  for (uint h = 0; h < HEADS; h++) {
    largest[h] = -1e30;
    total[h] = 0.0;
    for (uint p = 0; p < PIECES * 2; p++) sum[h * PIECES * 2 + p] = vec4(0.0);
  }
  for (uint base = first + team; base < end; base += AT_ONCE * TEAMS) {
    uvec4 k[AT_ONCE * PIECES], v[AT_ONCE * PIECES];
    [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
      uint cached = cached_row(table, min(base + i * TEAMS, end - 1), kv_head) * EIGHTS;
      [[unroll]] for (uint p = 0; p < PIECES; p++) {
        k[i * PIECES + p] = k_cache[cached + min(lane + p * LANES, EIGHTS - 1)];
        v[i * PIECES + p] = v_cache[cached + min(lane + p * LANES, EIGHTS - 1)];
      }
    }
    [[unroll]] for (uint h = 0; h < HEADS; h++) {
      float scores[AT_ONCE];
      float new_largest = largest[h];
      [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
        vec4 products = vec4(0.0);
        [[unroll]] for (uint p = 0; p < PIECES; p++) {
          products += query[(h * PIECES + p) * 2] * first_half(k[i * PIECES + p]);
          products += query[(h * PIECES + p) * 2 + 1] * second_half(k[i * PIECES + p]);
        }
        float score = products.x + products.y + products.z + products.w;
        [[unroll]] for (uint m = 1; m < LANES; m *= 2) score += subgroupShuffleXor(score, m);
        scores[i] = base + i * TEAMS < end ? score : -1e30;
        new_largest = max(new_largest, scores[i]);
      }
      float decay = exp(largest[h] - new_largest);
      largest[h] = new_largest;
      total[h] *= decay;
      [[unroll]] for (uint p = 0; p < PIECES * 2; p++) sum[h * PIECES * 2 + p] *= decay;
      [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
        float weight = base + i * TEAMS < end ? exp(scores[i] - new_largest) : 0.0;
        total[h] += weight;
        [[unroll]] for (uint p = 0; p < PIECES; p++) {
          sum[(h * PIECES + p) * 2] += weight * first_half(v[i * PIECES + p]);
          sum[(h * PIECES + p) * 2 + 1] += weight * second_half(v[i * PIECES + p]);
        }
      }
    }
  }
}

void share_with_workgroup() {
  for (uint h = 0; h < HEADS; h++) {
    if (lane == 0) {
      team_largest[team * HEADS + h] = largest[h];
      team_total[team * HEADS + h] = total[h];
    }
    for (uint p = 0; p < PIECES; p++) {
      uint eight = lane + p * LANES;
      if (eight >= EIGHTS) continue;
      uint to = team * OUTPUTS + h * HEAD_DIM + 8 * eight;
      for (uint j = 0; j < 4; j++) {
        team_sum[to + j] = sum[(h * PIECES + p) * 2][j];
        team_sum[to + 4 + j] = sum[(h * PIECES + p) * 2 + 1][j];
      }
    }
  }
}

// the workgroup's maximum, sum of weights and weighted value for one output
vec3 merged_teams(uint d) {
  uint h = d / HEAD_DIM;
  float most = team_largest[h];
  for (uint t = 1; t < TEAMS; t++) most = max(most, team_largest[t * HEADS + h]);
  vec3 merged = vec3(most, 0.0, 0.0);
  for (uint t = 0; t < TEAMS; t++) {
    float share = exp(team_largest[t * HEADS + h] - most);
    merged.y += share * team_total[t * HEADS + h];
    merged.z += share * team_sum[t * OUTPUTS + d];
  }
  return merged;
}

void main() {
  uint row = gl_WorkGroupID.y;
  if (row >= n_rows) return;
  uint self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  lane = self % LANES;
  team = self / LANES;
  uint head = (gl_WorkGroupID.x % (N_HEADS / HEADS)) * HEADS;
  uint kv_head = head / (N_HEADS / N_KV_HEADS);
  uint n_keys = rows[row].y + 1;
  uint n_splits = (n_keys + SPLIT - 1) / SPLIT;
  uint split = LOOPS != 0 ? 0 : gl_WorkGroupID.x / (N_HEADS / HEADS);
  if (split >= n_splits) return;
  uint last = LOOPS != 0 ? n_splits - 1 : split;

  load_query(row, head);
  vec3 own[OWN]; // maximum, sum of weights, weighted value
  for (uint i = 0; i < OWN; i++) own[i] = vec3(-1e30, 0.0, 0.0);
  for (; split <= last; split++) {
    attend(rows[row].z, kv_head, split * SPLIT, min((split + 1) * SPLIT, n_keys));
    share_with_workgroup();
    barrier();
    for (uint i = 0; i < OWN; i++) {
      uint d = self + i * LOCAL_SIZE;
      if (d >= OUTPUTS) break;
      vec3 part = merged_teams(d);
      if (LOOPS == 0) {
        uint to = ((row * N_HEADS + head + d / HEAD_DIM) * max_splits + split) * (HEAD_DIM + 2);
        partials[to + 2 + d % HEAD_DIM] = part.z;
        if (d % HEAD_DIM == 0) {
          partials[to] = part.x;
          partials[to + 1] = part.y;
        }
      } else {
        float most = max(own[i].x, part.x);
        own[i] = vec3(most, own[i].yz * exp(own[i].x - most) + part.yz * exp(part.x - most));
      }
    }
    barrier();
  }
  if (LOOPS == 0) return;

  for (uint i = 0; i < OWN; i++) {
    uint d = self + i * LOCAL_SIZE;
    if (d < OUTPUTS) result[d / 4][d % 4] = own[i].z / own[i].y;
  }
  barrier();
  for (uint i = self; i < OUTPUTS / 4; i += LOCAL_SIZE) {
    uint four = head * (HEAD_DIM / 4) + i;
    y[row * N_HEADS * (HEAD_DIM / 4) + four] = result[i];
    store_q16(row, N_HEADS * HEAD_DIM / 32, four / 8, result[i]);
  }
}
