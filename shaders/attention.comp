// attention: causal attention of a few queries (heads, tokens) that share a key head, over splits of SPLIT cached tokens
// bindings: q k_cache v_cache partials y y_q16 y_scales step
// constants: local_size n_heads n_kv_heads head_dim lanes heads_per_workgroup tokens_per_workgroup keys_at_once loops
// push: max_splits
// dispatch: x = n_heads / heads_per_workgroup (times splits, where it does not loop), y = tokens /
//   tokens_per_workgroup, rounded up; the tokens of a workgroup are of one sequence
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
layout(constant_id = 6) const uint TOKENS = 1;
layout(constant_id = 7) const uint AT_ONCE = 4; // keys whose loads are under way together
layout(constant_id = 8) const uint LOOPS = 0;
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
const uint EIGHTS = HEAD_DIM / 8;                   // uvec4 of a cached row
const uint PIECES = (EIGHTS + LANES - 1) / LANES;   // of them, a lane's
const uint TEAMS = LOCAL_SIZE / LANES;              // keys that the workgroup takes at a time
const uint QUERIES = TOKENS * HEADS;                // query t * HEADS + h: token t, head h
const uint OUTPUTS = QUERIES * HEAD_DIM;
const uint OWN = (OUTPUTS + LOCAL_SIZE - 1) / LOCAL_SIZE; // outputs that an invocation merges

shared float team_largest[TEAMS * QUERIES];
shared float team_total[TEAMS * QUERIES];
shared float team_sum[TEAMS * OUTPUTS];
shared vec4 result[OUTPUTS / 4];

uint lane, team;
uint n_keys[TOKENS];
vec4 query[QUERIES * PIECES * 2];
float largest[QUERIES], total[QUERIES];
vec4 sum[QUERIES * PIECES * 2];

vec4 first_half(uvec4 eight) { return vec4(unpackHalf2x16(eight.x), unpackHalf2x16(eight.y)); }
vec4 second_half(uvec4 eight) { return vec4(unpackHalf2x16(eight.z), unpackHalf2x16(eight.w)); }

void load_queries(uint row, uint head) {
  [[unroll]] for (uint i = 0; i < QUERIES; i++) {
    uint query_row = min(row + i / HEADS, n_rows - 1);
    [[unroll]] for (uint p = 0; p < PIECES; p++) {
      uint eight = lane + p * LANES;
      uint from = ((query_row * N_HEADS + head + i % HEADS) * EIGHTS + min(eight, EIGHTS - 1)) * 2;
      float factor = eight < EIGHTS ? inversesqrt(float(HEAD_DIM)) : 0.0;
      query[(i * PIECES + p) * 2] = q[from] * factor;
      query[(i * PIECES + p) * 2 + 1] = q[from + 1] * factor;
    }
  }
}

// the team's share of the split that begins at cached token `first`, into largest, total and sum
void attend(uint table, uint kv_head, uint first) {
  [[unroll]] for (uint h = 0; h < QUERIES; h++) {
    largest[h] = -1e30;
    total[h] = 0.0;
    [[unroll]] for (uint p = 0; p < PIECES * 2; p++) sum[h * PIECES * 2 + p] = vec4(0.0);
  }
  uint end = min(first + SPLIT, n_keys[TOKENS - 1]); // the last token sees the most
  // a split is two cache blocks; the second may not be there yet
  uint low_block = block_table[table + first / KV_BLOCK];
  uint high_block = block_table[table + (end - 1) / KV_BLOCK];
  for (uint base = first + team; base < end; base += AT_ONCE * TEAMS) {
    uvec4 k[AT_ONCE * PIECES], v[AT_ONCE * PIECES];
    [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
      uint position = min(base + i * TEAMS, end - 1);
      uint cache_block = position - first < KV_BLOCK ? low_block : high_block;
      uint cached = ((cache_block * N_KV_HEADS + kv_head) * KV_BLOCK + position % KV_BLOCK) * EIGHTS;
      [[unroll]] for (uint p = 0; p < PIECES; p++) {
        k[i * PIECES + p] = k_cache[cached + min(lane + p * LANES, EIGHTS - 1)];
        v[i * PIECES + p] = v_cache[cached + min(lane + p * LANES, EIGHTS - 1)];
      }
    }
    [[unroll]] for (uint h = 0; h < QUERIES; h++) {
      uint query_end = min(n_keys[h / HEADS], end);
      float scores[AT_ONCE];
      float new_largest = largest[h];
      [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
        vec4 products = vec4(0.0);
        [[unroll]] for (uint p = 0; p < PIECES; p++) {
          products += query[(h * PIECES + p) * 2] * first_half(k[i * PIECES + p]);
          products += query[(h * PIECES + p) * 2 + 1] * second_half(k[i * PIECES + p]);
        }
        float score = products.x + products.y + products.z + products.w;
        [[unroll]] for (uint m = 0; m < 5; m++) { // counted by addition, which is what Mesa unrolls
          if ((1u << m) < LANES) score += subgroupShuffleXor(score, 1u << m);
        }
        scores[i] = base + i * TEAMS < query_end ? score : -1e30;
        new_largest = max(new_largest, scores[i]);
      }
      float decay = exp(largest[h] - new_largest);
      largest[h] = new_largest;
      total[h] *= decay;
      [[unroll]] for (uint p = 0; p < PIECES * 2; p++) sum[h * PIECES * 2 + p] *= decay;
      [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
        float weight = base + i * TEAMS < query_end ? exp(scores[i] - new_largest) : 0.0;
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
  [[unroll]] for (uint h = 0; h < QUERIES; h++) {
    if (lane == 0) {
      team_largest[team * QUERIES + h] = largest[h];
      team_total[team * QUERIES + h] = total[h];
    }
    [[unroll]] for (uint p = 0; p < PIECES; p++) {
      uint eight = lane + p * LANES;
      if (eight >= EIGHTS) continue;
      uint to = team * OUTPUTS + h * HEAD_DIM + 8 * eight;
      [[unroll]] for (uint j = 0; j < 4; j++) {
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
  for (uint t = 1; t < TEAMS; t++) most = max(most, team_largest[t * QUERIES + h]);
  vec3 merged = vec3(most, 0.0, 0.0);
  for (uint t = 0; t < TEAMS; t++) {
    float share = exp(team_largest[t * QUERIES + h] - most);
    merged.y += share * team_total[t * QUERIES + h];
    merged.z += share * team_sum[t * OUTPUTS + d];
  }
  return merged;
}

void main() {
  uint row = gl_WorkGroupID.y * TOKENS;
  uint table = rows[row].z;
  for (uint t = 0; t < TOKENS; t++) n_keys[t] = rows[min(row + t, MAX_ROWS - 1)].y + 1;
  if (row >= n_rows) return;
  for (uint t = 1; t < TOKENS; t++) {
    if (row + t >= n_rows) n_keys[t] = n_keys[t - 1]; // a row that is not there repeats the last
  }
  uint self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  lane = self % LANES;
  team = self / LANES;
  uint head = (gl_WorkGroupID.x % (N_HEADS / HEADS)) * HEADS;
  uint kv_head = head / (N_HEADS / N_KV_HEADS);
  uint n_splits = (n_keys[TOKENS - 1] + SPLIT - 1) / SPLIT;
  uint split = LOOPS != 0 ? 0 : gl_WorkGroupID.x / (N_HEADS / HEADS);
  if (split >= n_splits) return;
  uint last = LOOPS != 0 ? n_splits - 1 : split;

  load_queries(row, head);
  vec3 own[OWN]; // maximum, sum of weights, weighted value
  for (uint i = 0; i < OWN; i++) own[i] = vec3(-1e30, 0.0, 0.0);
  for (; split <= last; split++) {
    attend(table, kv_head, split * SPLIT);
    share_with_workgroup();
    barrier();
    for (uint i = 0; i < OWN; i++) {
      uint d = self + i * LOCAL_SIZE;
      if (d >= OUTPUTS) break;
      vec3 part = merged_teams(d);
      if (LOOPS == 0) { // one token
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
    uint out_row = row + i / (HEADS * HEAD_DIM / 4);
    uint four = head * (HEAD_DIM / 4) + i % (HEADS * HEAD_DIM / 4);
    if (out_row >= n_rows) break; // eight lanes of a block leave together
    y[out_row * N_HEADS * (HEAD_DIM / 4) + four] = result[i];
    store_q16(out_row, N_HEADS * HEAD_DIM / 32, four / 8, result[i]);
  }
}
