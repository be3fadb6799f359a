// attention: causal attention of one query head of one token over the cache, for prefill and decode alike
// bindings: q k_cache v_cache y y_q16 y_scales step
// constants: local_size n_heads n_kv_heads head_dim
// push:
// dispatch: x = n_heads, y = tokens
// requires: subgroup arithmetic; local_size at least head_dim / 2
// numerics: float32 scores and sums over a float16 cache, online softmax: tiles of local_size positions
// source: Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 64;
layout(constant_id = 1) const uint N_HEADS = 32;
layout(constant_id = 2) const uint N_KV_HEADS = 8;
layout(constant_id = 3) const uint HEAD_DIM = 128;
layout(std430, binding = 0) readonly buffer Q { vec4 q[]; };
layout(std430, binding = 1) readonly buffer KCache { uvec4 k_cache[]; };
layout(std430, binding = 2) readonly buffer VCache { uint v_cache[]; };
layout(std430, binding = 3) writeonly buffer Y { float y[]; };
layout(std430, binding = 4) writeonly buffer YQ16 { uvec4 y_q16[]; };
layout(std430, binding = 5) writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 6
#include "lib/step.glsl"
#include "lib/q16.glsl"

const uint PAIRS = HEAD_DIM / 2;          // words of a cached row
const uint SLICES = LOCAL_SIZE / PAIRS;   // invocations that share a pair of output dimensions

shared vec4 query[HEAD_DIM / 4];
shared float weights[LOCAL_SIZE];
shared vec2 sums[LOCAL_SIZE];
shared float partial[64];
shared float result[HEAD_DIM];

float max_of_workgroup(float v) {
  float largest = subgroupMax(v);
  if (gl_SubgroupInvocationID == 0) partial[gl_SubgroupID] = largest;
  barrier();
  largest = partial[0];
  for (uint i = 1; i < gl_NumSubgroups; i++) largest = max(largest, partial[i]);
  return largest;
}

uint cached_row(uint table, uint position, uint kv_head) {
  return (block_table[table + position / KV_BLOCK] * N_KV_HEADS + kv_head) * KV_BLOCK + position % KV_BLOCK;
}

float score(uint cached) {
  vec4 sum = vec4(0.0);
  for (uint i = 0; i < HEAD_DIM / 8; i++) {
    uvec4 k = k_cache[cached * (HEAD_DIM / 8) + i];
    sum += query[2 * i] * vec4(unpackHalf2x16(k.x), unpackHalf2x16(k.y));
    sum += query[2 * i + 1] * vec4(unpackHalf2x16(k.z), unpackHalf2x16(k.w));
  }
  return (sum.x + sum.y + sum.z + sum.w) * inversesqrt(float(HEAD_DIM));
}

void main() {
  uint row = gl_WorkGroupID.y, head = gl_WorkGroupID.x, self = gl_LocalInvocationID.x;
  if (row >= n_rows) return;
  uint kv_head = head / (N_HEADS / N_KV_HEADS);
  uint n_keys = rows[row].y + 1;
  uint table = rows[row].z;
  for (uint i = self; i < HEAD_DIM / 4; i += LOCAL_SIZE) query[i] = q[(row * N_HEADS + head) * (HEAD_DIM / 4) + i];

  uint pair = self % PAIRS, slice = self / PAIRS;
  float largest = -1e30, total = 0.0;
  vec2 sum = vec2(0.0);
  for (uint tile = 0; tile < n_keys; tile += LOCAL_SIZE) {
    barrier(); // the query is there; the last tile's weights and maxima have been read
    uint position = tile + self;
    float s = position < n_keys ? score(cached_row(table, position, kv_head)) : -1e30;
    float new_largest = max(largest, max_of_workgroup(s));
    weights[self] = position < n_keys ? exp(s - new_largest) : 0.0;
    barrier();
    float decay = exp(largest - new_largest);
    largest = new_largest;
    sum *= decay;
    total *= decay;
    uint n = min(LOCAL_SIZE, n_keys - tile);
    for (uint i = slice; i < n; i += SLICES) {
      float weight = weights[i];
      total += weight;
      sum += weight * unpackHalf2x16(v_cache[cached_row(table, tile + i, kv_head) * PAIRS + pair]);
    }
  }

  // the slices' sums come together; every slice has its own share of `total`
  barrier();
  sums[self] = sum;
  weights[self] = total;
  barrier();
  if (slice == 0) {
    for (uint i = 1; i < SLICES; i++) {
      sum += sums[pair + i * PAIRS];
      total += weights[pair + i * PAIRS];
    }
    result[2 * pair] = sum.x / total;
    result[2 * pair + 1] = sum.y / total;
  }
  barrier();

  uint out_row = (row * N_HEADS + head) * HEAD_DIM;
  for (uint d = self; d < HEAD_DIM; d += LOCAL_SIZE) y[out_row + d] = result[d];
  if (self < HEAD_DIM / 32) {
    float v[32];
    for (uint i = 0; i < 32; i++) v[i] = result[32 * self + i];
    store_q16(out_row / 32 + self, v);
  }
}
