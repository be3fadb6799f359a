// attention_tiled: attention of a tile of queries (tokens, heads that share a key head) by cooperative matrices
// bindings: q k_cache v_cache y y_q16 y_scales step sinks gates
// constants: local_size n_heads n_kv_heads head_dim k_q8_0 v_q8_0 matrix_m matrix_n matrix_k scale softcap window table ahead n_splits chunk has_sinks gates_columns quantizes
// push:
// dispatch: x = n_kv_heads * n_splits, each with its part of the dimensions of values; y = tokens / (TILE_ROWS / (n_heads / n_kv_heads)), rounded up; the tokens of a workgroup are
//   of one sequence, in order
// subgroup: basic shuffle
// requires: full subgroups; cooperative_matrix (float16 to float32, of 8 or 16 in each direction), fp16; local_size
//   such that its subgroups have matrix_m queries each; head_dim a multiple of 32 * n_splits, of values at most 128
// numerics: queries, keys, weights and values rounded to float16, float32 scores and sums; the same for a token however
//   the step is cut
// source: own; Dao et al. 2022, arXiv 2205.14135; Milakov and Gimelshein 2018, arXiv 1805.02867
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 128;
layout(constant_id = 1) const uint N_HEADS = 32;
layout(constant_id = 2) const uint N_KV_HEADS = 8;
layout(constant_id = 3) const uint HEAD_DIM = 128;
layout(constant_id = 4) const uint K_Q8_0 = 0;
layout(constant_id = 5) const uint V_Q8_0 = 0;
layout(constant_id = 6) const uint MATRIX_M = 16; // queries, keys (or dimensions) and inner size of one instruction
layout(constant_id = 7) const uint MATRIX_N = 16;
layout(constant_id = 8) const uint MATRIX_K = 16;
layout(constant_id = 9) const uint SCALE = 0x3db504f3; // as in attention.comp
layout(constant_id = 10) const uint SOFTCAP = 0;
layout(constant_id = 11) const uint WINDOW = 0;
layout(constant_id = 12) const uint TABLE = 0;
layout(constant_id = 13) const uint AHEAD = 0;
layout(constant_id = 14) const uint N_SPLITS = 1; // of values, whose sums would take too many registers
layout(constant_id = 15) const uint CHUNK = 0; // as in attention.comp
layout(constant_id = 16) const uint HAS_SINKS = 0;
layout(constant_id = 17) const uint GATES_COLUMNS = 0;
layout(constant_id = 18) const uint QUANTIZES = 1;
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
#include "lib/store_form.glsl"
#include "lib/kvcache.glsl"
#include "lib/softcap.glsl"
#include "lib/seen.glsl"
#include "lib/attended.glsl"

#define TILE_ROWS 64 // queries of a workgroup
const uint HEADS = N_HEADS / N_KV_HEADS;
const uint TOKENS = TILE_ROWS / HEADS;
const uint LANES = LOCAL_SIZE * MATRIX_M / TILE_ROWS; // of a subgroup
const uint ROW_LANES = LANES / MATRIX_M;              // neighbouring lanes that take a query's scores together
const uint ROW_KEYS = KV_BLOCK / ROW_LANES;
const uint V_DIM = HEAD_DIM / N_SPLITS;               // dimensions of values that a workgroup takes
const uint V_EIGHTS = V_DIM / 8;
const uint K_STEPS = HEAD_DIM / MATRIX_K, D_STEPS = V_DIM / MATRIX_N;

// Rows are some words longer than what they hold, against bank conflicts.
const uint STRIDE = EIGHTS + 1; // uvec4 of a row of a tile of keys, and of a half tile of queries
const uint V_STRIDE = V_EIGHTS + 1;
#define SCORE_STRIDE 36
#define WEIGHT_STRIDE 5
shared uvec4 k_tile[KV_BLOCK * STRIDE];
shared uvec4 v_tile[KV_BLOCK * V_STRIDE];
shared float scores[TILE_ROWS * SCORE_STRIDE]; // each subgroup has its own queries' part, also for factors and results
shared uvec4 weights[TILE_ROWS * WEIGHT_STRIDE];

#define Sums coopmat<float, gl_ScopeSubgroup, MATRIX_M, MATRIX_N, gl_MatrixUseAccumulator>
#define Left coopmat<float16_t, gl_ScopeSubgroup, MATRIX_M, MATRIX_K, gl_MatrixUseA>
#define Right coopmat<float16_t, gl_ScopeSubgroup, MATRIX_K, MATRIX_N, gl_MatrixUseB>

uint self, lane, tile_row0; // tile_row0: the subgroup's first query
uint kv_head, split;
Left queries[K_STEPS];
Sums sums[D_STEPS];

uvec4 halves(uvec4 eight, uint is_q8_0) {
  if (is_q8_0 == 0) return eight;
  float scale = scale_of(eight, is_q8_0);
  vec4 a = scale * first_half(eight, is_q8_0), b = scale * second_half(eight, is_q8_0);
  return uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
}

// Query i of the tile is head i % HEADS of token i / HEADS; rows that are not there repeat the last.
uint row_of(uint i) { return min(gl_WorkGroupID.y * TOKENS + i / HEADS, n_rows - 1); }

// Half of the tile at a time through the keys' place, each subgroup then takes its own queries.
void load_queries() {
  for (uint first = 0; first < TILE_ROWS; first += KV_BLOCK) {
    for (uint i = self; i < KV_BLOCK * EIGHTS; i += LOCAL_SIZE) {
      uint query = first + i / EIGHTS;
      uint from = ((row_of(query) * N_HEADS + kv_head * HEADS + query % HEADS) * EIGHTS + i % EIGHTS) * 2;
      vec4 a = q[from] * uintBitsToFloat(SCALE), b = q[from + 1] * uintBitsToFloat(SCALE);
      k_tile[i / EIGHTS * STRIDE + i % EIGHTS] =
          uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
    }
    barrier();
    if (tile_row0 / KV_BLOCK == first / KV_BLOCK) {
      [[unroll]] for (uint k = 0; k < K_STEPS; k++) {
        coopMatLoad(queries[k], k_tile, tile_row0 % KV_BLOCK * STRIDE + k * (MATRIX_K / 8), STRIDE,
                    gl_CooperativeMatrixLayoutRowMajor);
      }
    }
    barrier();
  }
}

// A cache block of keys and values; values before first and from end on, which may be anything, are 0.
void load_tile(uint unit, uint first, uint end) {
  for (uint i = self; i < KV_BLOCK * EIGHTS; i += LOCAL_SIZE) {
    uint key = i / EIGHTS, eight = i % EIGHTS;
    k_tile[key * STRIDE + eight] = halves(load_key(unit, key, eight), K_Q8_0);
    uint v_eight = eight - split * V_EIGHTS; // wraps around for those before
    if (N_SPLITS > 1 && v_eight >= V_EIGHTS) continue;
    v_tile[key * V_STRIDE + v_eight] = key >= first && key < end ? halves(load_value(unit, key, eight), V_Q8_0) : uvec4(0);
  }
}

void multiply_keys() {
  Sums products[KV_BLOCK / MATRIX_N];
  [[unroll]] for (uint n = 0; n < KV_BLOCK / MATRIX_N; n++) products[n] = Sums(0.0);
  [[unroll]] for (uint k = 0; k < K_STEPS; k++) { // in this order an RX 7900 has registers for it
    [[unroll]] for (uint n = 0; n < KV_BLOCK / MATRIX_N; n++) {
      Right keys;
      coopMatLoad(keys, k_tile, n * MATRIX_N * STRIDE + k * (MATRIX_K / 8), STRIDE,
                  gl_CooperativeMatrixLayoutColumnMajor);
      products[n] = coopMatMulAdd(queries[k], keys, products[n]);
    }
  }
  [[unroll]] for (uint n = 0; n < KV_BLOCK / MATRIX_N; n++) {
    coopMatStore(products[n], scores, tile_row0 * SCORE_STRIDE + n * MATRIX_N, SCORE_STRIDE,
                 gl_CooperativeMatrixLayoutRowMajor);
  }
  subgroupBarrier();
}

// Multiplies row i of the sums by what the lanes of row i give: a matrix whose columns are all alike.
void scale_sums(float factor) {
  subgroupBarrier(); // the scores have been read
  uint place = tile_row0 * SCORE_STRIDE, row = lane / ROW_LANES;
  for (uint n = lane % ROW_LANES; n < MATRIX_N; n += ROW_LANES) scores[place + row * MATRIX_N + n] = factor;
  subgroupBarrier();
  Sums factors;
  coopMatLoad(factors, scores, place, MATRIX_N, gl_CooperativeMatrixLayoutRowMajor);
  [[unroll]] for (uint d = 0; d < D_STEPS; d++) sums[d] *= factors;
}

void add_values() {
  [[unroll]] for (uint k = 0; k < KV_BLOCK / MATRIX_K; k++) {
    Left part;
    coopMatLoad(part, weights, tile_row0 * WEIGHT_STRIDE + k * (MATRIX_K / 8), WEIGHT_STRIDE,
                gl_CooperativeMatrixLayoutRowMajor);
    [[unroll]] for (uint d = 0; d < D_STEPS; d++) {
      Right values;
      coopMatLoad(values, v_tile, k * MATRIX_K * V_STRIDE + d * (MATRIX_N / 8), V_STRIDE,
                  gl_CooperativeMatrixLayoutRowMajor);
      sums[d] = coopMatMulAdd(part, values, sums[d]);
    }
  }
}

// The sums of 32 dimensions at a time, to y and as a block of y_q16 or as float16.
void store_results() {
  uint n_lasting = min(TOKENS, n_rows - gl_WorkGroupID.y * TOKENS) * HEADS; // queries that are there
  [[unroll]] for (uint block = 0; block < V_DIM / 32; block++) {
    subgroupBarrier();
    [[unroll]] for (uint n = 0; n < 32 / MATRIX_N; n++) {
      coopMatStore(sums[block * (32 / MATRIX_N) + n], scores, tile_row0 * SCORE_STRIDE + n * MATRIX_N, SCORE_STRIDE,
                   gl_CooperativeMatrixLayoutRowMajor);
    }
    subgroupBarrier();
    for (uint i = lane; i < MATRIX_M * 8; i += LANES) { // eight lanes have a block of a query
      uint query = tile_row0 + i / 8, from = query * SCORE_STRIDE + i % 8 * 4;
      if (query >= n_lasting) break;
      vec4 four = vec4(scores[from], scores[from + 1], scores[from + 2], scores[from + 3]);
      uint row = row_of(query), head = kv_head * HEADS + query % HEADS, in_head = split * (V_DIM / 32) + block;
      uint head_block = head * (HEAD_DIM / 32) + in_head;
      if (GATES_COLUMNS != 0) {
        four = gated(four, gates[row * (GATES_COLUMNS / 4) + (2 * head + 1) * (HEAD_DIM / 4) + in_head * 8 + i % 8]);
      }
      y[row * (N_HEADS * HEAD_DIM / 4) + head_block * 8 + i % 8] = four;
      store_form(row, N_HEADS * HEAD_DIM / 32, head_block, four);
    }
  }
}

bool is_seen(uint key, uint first, uint end) { return key < end && (!SEES_LAST || key >= first); }

float capped(float score) { return SOFTCAP != 0 ? softcapped(score, uintBitsToFloat(SOFTCAP)) : score; }

void main() {
  if (gl_WorkGroupID.y * TOKENS >= n_rows) return;
  lane = gl_SubgroupInvocationID;
  self = gl_SubgroupID * LANES + lane;
  tile_row0 = gl_SubgroupID * MATRIX_M;
  kv_head = N_SPLITS > 1 ? gl_WorkGroupID.x / N_SPLITS : gl_WorkGroupID.x;
  split = N_SPLITS > 1 ? gl_WorkGroupID.x % N_SPLITS : 0;
  load_queries();
  [[unroll]] for (uint d = 0; d < D_STEPS; d++) sums[d] = Sums(0.0);

  uint own = tile_row0 + lane / ROW_LANES, first_key = lane % ROW_LANES * ROW_KEYS;
  uint own_first = first_seen(row_of(own)), own_end = end_seen(row_of(own));
  uint first = first_seen(row_of(0)), end = end_seen(row_of(TILE_ROWS - 1)); // all that any query sees
  uint table = rows[row_of(0)].z;
  float largest = -1e30, total = 0.0;
  for (uint base = first / KV_BLOCK * KV_BLOCK; base < end; base += KV_BLOCK) {
    load_tile(unit_of(table, kv_head, base), max(first, base) - base, end - base);
    barrier();
    multiply_keys();
    float score[ROW_KEYS], new_largest = largest;
    [[unroll]] for (uint i = 0; i < ROW_KEYS; i++) {
      score[i] = is_seen(base + first_key + i, own_first, own_end) ? capped(scores[own * SCORE_STRIDE + first_key + i]) : -1e30;
      new_largest = max(new_largest, score[i]);
    }
    [[unroll]] for (uint m = 0; m < 5; m++) {
      if ((1u << m) < ROW_LANES) new_largest = max(new_largest, subgroupShuffleXor(new_largest, 1u << m));
    }
    float decay = exp(largest - new_largest);
    largest = new_largest;
    total *= decay;
    [[unroll]] for (uint i = 0; i < ROW_KEYS; i++) {
      score[i] = is_seen(base + first_key + i, own_first, own_end) ? exp(score[i] - largest) : 0.0;
      total += score[i];
    }
    [[unroll]] for (uint i = 0; i < ROW_KEYS; i += 8) {
      weights[own * WEIGHT_STRIDE + (first_key + i) / 8] =
          uvec4(packHalf2x16(vec2(score[i], score[i + 1])), packHalf2x16(vec2(score[i + 2], score[i + 3])),
                packHalf2x16(vec2(score[i + 4], score[i + 5])), packHalf2x16(vec2(score[i + 6], score[i + 7])));
    }
    scale_sums(decay);
    add_values();
    barrier(); // the tiles have been read
  }
  [[unroll]] for (uint m = 0; m < 5; m++) {
    if ((1u << m) < ROW_LANES) total += subgroupShuffleXor(total, 1u << m);
  }
  scale_sums(1.0 / with_sink(total, largest, kv_head * HEADS + own % HEADS));
  store_results();
}
