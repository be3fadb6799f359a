// delta_net_chunks: what delta_net computes, for prompts, in chunks of 32 tokens by products of cooperative matrices
// bindings: qkv gates dt a states y step
// constants: local_size n_k_heads n_v_heads head_dim columns is_grouped gates_columns beta_column alpha_column has_fused_gates eps slot_words matrix_m matrix_n matrix_k n_subgroups
// push: first_word
// dispatch: x = n_v_heads * head_dim / columns, of a step of one sequence; a workgroup keeps `columns` columns of a head's state
// subgroup: basic shuffle
// requires: full subgroups; cooperative_matrix (float16 to float32, of 8 or 16 in each direction), fp16; local_size a multiple
//   of 32 and of columns, at most a subgroup times either; or the _plain variant, with loops in place of matrices, for tests
// numerics: queries, keys, states and what is added to them rounded to float16 before products, float32 sums; states float32
// source: Yang et al. 2024, arXiv 2406.06484 and 2412.06464
//
// See delta_net for what is computed. With G the sums of the logarithms of g since the chunk's beginning, S0 the state there
// and u = sigmoid(beta) (v - g S^T k) of each row, S behind row t is exp(G_t) S0 + sum over i <= t of exp(G_t - G_i) k_i
// outer u_i. So the u of a chunk solve (1 + A) U = sigmoid(beta) (V - exp(G) K S0), where A_ti = sigmoid(beta_t)
// exp(G_t - G_i) k_t k_i for i < t, and the results are exp(G) Q S0 + P U with P_ti = exp(G_t - G_i) q_t k_i for i <= t.
// Rows behind the last one have k = q = v = 0 and g = 1, and change nothing.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 128;
layout(constant_id = 1) const uint N_K_HEADS = 16;
layout(constant_id = 2) const uint N_V_HEADS = 48;
layout(constant_id = 3) const uint SIZE = 128;
layout(constant_id = 4) const uint COLUMNS = 32;
layout(constant_id = 5) const uint IS_GROUPED = 0;
layout(constant_id = 6) const uint GATES_COLUMNS = 16480;
layout(constant_id = 7) const uint BETA_COLUMN = 16384;
layout(constant_id = 8) const uint ALPHA_COLUMN = 16432;
layout(constant_id = 9) const uint HAS_FUSED_GATES = 0;
layout(constant_id = 10) const uint EPS = 0x358637bd; // 1e-6
layout(constant_id = 11) const uint SLOT_WORDS = 1024;
layout(constant_id = 12) const uint MATRIX_M = 16;
layout(constant_id = 13) const uint MATRIX_N = 16;
layout(constant_id = 14) const uint MATRIX_K = 16;
layout(constant_id = 15) const uint N_SUBGROUPS = 4;
layout(push_constant) uniform Push { uint first_word; };
layout(std430, binding = 0) readonly buffer Qkv { float qkv[]; };
layout(std430, binding = 0) readonly buffer QkvFours { vec4 qkv_fours[]; }; // the same
layout(std430, binding = 1) readonly buffer Gates { float gates[]; };
layout(std430, binding = 2) readonly buffer Dt { float dt[]; };
layout(std430, binding = 3) readonly buffer A { float a[]; };
layout(std430, binding = 4) buffer States { float states[]; };
layout(std430, binding = 5) writeonly buffer Y { float y[]; };
#define STEP_BINDING 6
#include "lib/step.glsl"
#include "lib/states.glsl"
#include "lib/delta_gates.glsl"

#define CHUNK 32
#ifdef PLAIN
#define HALF float
#define UNROLL [[dont_unroll]]
#define SELF gl_LocalInvocationIndex
const uint ROW_LANES = 1, COLUMN_LANES = 1;
#define FROM_LANE(v, lane) (v)
#else
#define HALF float16_t
#define UNROLL [[unroll]]
#define SELF (gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID)
const uint ROW_LANES = LOCAL_SIZE / CHUNK;      // neighbouring invocations that take a row of queries and keys
const uint COLUMN_LANES = LOCAL_SIZE / COLUMNS; // and a column of u
#define FROM_LANE(v, lane) subgroupShuffle(v, gl_SubgroupInvocationID / COLUMN_LANES * COLUMN_LANES + (lane))
#endif
const uint ROW_COLUMNS = (2 * N_K_HEADS + N_V_HEADS) * SIZE;
const uint OWN = SIZE / 4 / ROW_LANES;       // an invocation's fours of a row
const uint OWN_ROWS = CHUNK / COLUMN_LANES;  // of a column of u
const uint STRIDE = SIZE + 8;                // of rows in shared memory, against bank conflicts
#define U_STRIDE (CHUNK + 8)
const uint KEPT = COLUMNS + 4;

shared HALF k_of[CHUNK * STRIDE], q_of[CHUNK * STRIDE]; // by row
shared HALF s_of[COLUMNS * STRIDE];                     // by column
shared HALF p_of[CHUNK * U_STRIDE];                     // by row
shared HALF u_of[COLUMNS * U_STRIDE], last_u_of[COLUMNS * U_STRIDE]; // by column; with the decay up to the chunk's end
shared float a_of[CHUNK * U_STRIDE];
shared float ks[CHUNK * KEPT], qs[CHUNK * KEPT]; // by row
shared float log_decay[CHUNK], strength[CHUNK], since[CHUNK];

// an invocation's i-th four of a row's queries, or keys, from `first` on
vec4 part_of_row(uint row0, uint first, uint i) {
  uint row = row0 + SELF / ROW_LANES, column = (i * ROW_LANES + SELF % ROW_LANES) * 4;
  return SELF / ROW_LANES < CHUNK && row < n_rows ? qkv_fours[(row * ROW_COLUMNS + first + column) / 4] : vec4(0.0);
}

#ifdef PLAIN
#define Q_PART(i) part_of_row(row0, q_first, i)
#define K_PART(i) part_of_row(row0, q_first + N_K_HEADS * SIZE, i)
void load_rows(uint row0, uint q_first) {}
#else
vec4 next_q[OWN], next_k[OWN]; // of the next chunk, on their way meanwhile
#define Q_PART(i) next_q[i]
#define K_PART(i) next_k[i]
void load_rows(uint row0, uint q_first) {
  [[unroll]] for (uint i = 0; i < OWN; i++) {
    next_q[i] = part_of_row(row0, q_first, i);
    next_k[i] = part_of_row(row0, q_first + N_K_HEADS * SIZE, i);
  }
}
#endif

float sum_of_row(float v) {
#ifndef PLAIN
  [[unroll]] for (uint i = 1; i < ROW_LANES; i *= 2) v += subgroupShuffleXor(v, i);
#endif
  return v;
}

// divided by their lengths
void keep_rows(uint row0, uint q_first) {
  float qq = 0.0, kk = 0.0, eps = uintBitsToFloat(EPS);
  UNROLL for (uint i = 0; i < OWN; i++) {
    qq += dot(Q_PART(i), Q_PART(i));
    kk += dot(K_PART(i), K_PART(i));
  }
  float q_factor = inversesqrt(sum_of_row(qq) + eps) * inversesqrt(float(SIZE)), k_factor = inversesqrt(sum_of_row(kk) + eps);
  if (SELF / ROW_LANES >= CHUNK) return;
  UNROLL for (uint i = 0; i < OWN; i++) {
    uint to = SELF / ROW_LANES * STRIDE + (i * ROW_LANES + SELF % ROW_LANES) * 4;
    vec4 q = Q_PART(i) * q_factor, k = K_PART(i) * k_factor;
    [[unroll]] for (uint n = 0; n < 4; n++) {
      q_of[to + n] = HALF(q[n]);
      k_of[to + n] = HALF(k[n]);
    }
  }
}

#ifdef PLAIN
// The products of cooperative matrices, by loops; the state lies in s_of.
void load_state(uint from) {
  for (uint e = SELF; e < COLUMNS * SIZE; e += LOCAL_SIZE) {
    s_of[e / SIZE * STRIDE + e % SIZE] = from == NO_SLOT ? 0.0 : states[from + e];
  }
}
void store_state(uint to) {
  for (uint e = SELF; e < COLUMNS * SIZE; e += LOCAL_SIZE) states[to + e] = s_of[e / SIZE * STRIDE + e % SIZE];
}
void keep_state() {}
void products_of_rows() {
  for (uint e = SELF; e < CHUNK * CHUNK; e += LOCAL_SIZE) {
    float kk = 0.0, qk = 0.0;
    UNROLL for (uint i = 0; i < SIZE; i++) {
      kk += k_of[e / CHUNK * STRIDE + i] * k_of[e % CHUNK * STRIDE + i];
      qk += q_of[e / CHUNK * STRIDE + i] * k_of[e % CHUNK * STRIDE + i];
    }
    a_of[e / CHUNK * U_STRIDE + e % CHUNK] = kk;
    p_of[e / CHUNK * U_STRIDE + e % CHUNK] = qk;
  }
  for (uint e = SELF; e < CHUNK * COLUMNS; e += LOCAL_SIZE) {
    float of_k = 0.0, of_q = 0.0;
    UNROLL for (uint i = 0; i < SIZE; i++) {
      of_k += k_of[e / COLUMNS * STRIDE + i] * s_of[e % COLUMNS * STRIDE + i];
      of_q += q_of[e / COLUMNS * STRIDE + i] * s_of[e % COLUMNS * STRIDE + i];
    }
    ks[e / COLUMNS * KEPT + e % COLUMNS] = of_k;
    qs[e / COLUMNS * KEPT + e % COLUMNS] = of_q;
  }
}
void add_products_of_u(float decay) {
  for (uint e = SELF; e < CHUNK * COLUMNS; e += LOCAL_SIZE) {
    float sum = 0.0;
    UNROLL for (uint i = 0; i < CHUNK; i++) sum += p_of[e / COLUMNS * U_STRIDE + i] * u_of[e % COLUMNS * U_STRIDE + i];
    qs[e / COLUMNS * KEPT + e % COLUMNS] += sum;
  }
  for (uint e = SELF; e < COLUMNS * SIZE; e += LOCAL_SIZE) {
    float sum = 0.0;
    UNROLL for (uint i = 0; i < CHUNK; i++) sum += k_of[i * STRIDE + e % SIZE] * last_u_of[e / SIZE * U_STRIDE + i];
    uint to = e / SIZE * STRIDE + e % SIZE;
    s_of[to] = decay * s_of[to] + sum;
  }
}
#else
#define Sums coopmat<float, gl_ScopeSubgroup, MATRIX_M, MATRIX_N, gl_MatrixUseAccumulator>
#define HalfSums coopmat<float16_t, gl_ScopeSubgroup, MATRIX_M, MATRIX_N, gl_MatrixUseAccumulator>
#define Left coopmat<float16_t, gl_ScopeSubgroup, MATRIX_M, MATRIX_K, gl_MatrixUseA>
#define Right coopmat<float16_t, gl_ScopeSubgroup, MATRIX_K, MATRIX_N, gl_MatrixUseB>
#define ROWS gl_CooperativeMatrixLayoutRowMajor
#define COLUMNWISE gl_CooperativeMatrixLayoutColumnMajor
const uint ROW_TILES = CHUNK / MATRIX_M, S_ROW_TILES = SIZE / MATRIX_M;
const uint CHUNK_TILES = CHUNK / MATRIX_N, COLUMN_TILES = COLUMNS / MATRIX_N;
const uint S_TILES = S_ROW_TILES * COLUMN_TILES;
const uint OWN_TILES = (S_TILES + N_SUBGROUPS - 1) / N_SUBGROUPS;

Sums s[OWN_TILES]; // of the state, the subgroup's

void load_state(uint from) {
  [[unroll]] for (uint i = 0; i < OWN_TILES; i++) {
    uint tile = i * N_SUBGROUPS + gl_SubgroupID;
    s[i] = Sums(0.0);
    if (tile < S_TILES && from != NO_SLOT) {
      coopMatLoad(s[i], states, from + tile / S_ROW_TILES * MATRIX_N * SIZE + tile % S_ROW_TILES * MATRIX_M, SIZE, COLUMNWISE);
    }
  }
}

void store_state(uint to) {
  [[unroll]] for (uint i = 0; i < OWN_TILES; i++) {
    uint tile = i * N_SUBGROUPS + gl_SubgroupID;
    if (tile < S_TILES) {
      coopMatStore(s[i], states, to + tile / S_ROW_TILES * MATRIX_N * SIZE + tile % S_ROW_TILES * MATRIX_M, SIZE, COLUMNWISE);
    }
  }
}

void keep_state() {
  [[unroll]] for (uint i = 0; i < OWN_TILES; i++) {
    uint tile = i * N_SUBGROUPS + gl_SubgroupID;
    if (tile < S_TILES) {
      uint to = tile / S_ROW_TILES * MATRIX_N * STRIDE + tile % S_ROW_TILES * MATRIX_M;
      coopMatStore(HalfSums(s[i]), s_of, to, STRIDE, COLUMNWISE);
    }
  }
}

// a tile of (rows of k_of or q_of) x (columns of k_of or s_of)
#define PRODUCT_OF_ROWS(sums, left, row, right, column) \
  sums = Sums(0.0);                                                                                \
  [[unroll]] for (uint i = 0; i < SIZE; i += MATRIX_K) {                                           \
    Left l;                                                                                        \
    Right r;                                                                                       \
    coopMatLoad(l, left, (row) * STRIDE + i, STRIDE, ROWS);                                        \
    coopMatLoad(r, right, (column) * STRIDE + i, STRIDE, COLUMNWISE);                              \
    sums = coopMatMulAdd(l, r, sums);                                                              \
  }

void products_of_rows() {
  for (uint tile = gl_SubgroupID; tile < ROW_TILES * CHUNK_TILES; tile += N_SUBGROUPS) {
    uint row = tile / CHUNK_TILES * MATRIX_M, column = tile % CHUNK_TILES * MATRIX_N;
    Sums of_k, of_q;
    PRODUCT_OF_ROWS(of_k, k_of, row, k_of, column)
    PRODUCT_OF_ROWS(of_q, q_of, row, k_of, column)
    coopMatStore(of_k, a_of, row * U_STRIDE + column, U_STRIDE, ROWS);
    coopMatStore(HalfSums(of_q), p_of, row * U_STRIDE + column, U_STRIDE, ROWS);
  }
  for (uint tile = gl_SubgroupID; tile < ROW_TILES * COLUMN_TILES; tile += N_SUBGROUPS) {
    uint row = tile / COLUMN_TILES * MATRIX_M, column = tile % COLUMN_TILES * MATRIX_N;
    Sums of_k, of_q;
    PRODUCT_OF_ROWS(of_k, k_of, row, s_of, column)
    PRODUCT_OF_ROWS(of_q, q_of, row, s_of, column)
    coopMatStore(of_k, ks, row * KEPT + column, KEPT, ROWS);
    coopMatStore(of_q, qs, row * KEPT + column, KEPT, ROWS);
  }
}

void add_products_of_u(float decay) {
  for (uint tile = gl_SubgroupID; tile < ROW_TILES * COLUMN_TILES; tile += N_SUBGROUPS) {
    uint row = tile / COLUMN_TILES * MATRIX_M, column = tile % COLUMN_TILES * MATRIX_N;
    Sums sums;
    coopMatLoad(sums, qs, row * KEPT + column, KEPT, ROWS);
    [[unroll]] for (uint i = 0; i < CHUNK; i += MATRIX_K) {
      Left l;
      Right r;
      coopMatLoad(l, p_of, row * U_STRIDE + i, U_STRIDE, ROWS);
      coopMatLoad(r, u_of, column * U_STRIDE + i, U_STRIDE, COLUMNWISE);
      sums = coopMatMulAdd(l, r, sums);
    }
    coopMatStore(sums, qs, row * KEPT + column, KEPT, ROWS);
  }
  [[unroll]] for (uint i = 0; i < OWN_TILES; i++) {
    uint tile = i * N_SUBGROUPS + gl_SubgroupID;
    if (tile < S_TILES) {
      s[i] *= decay;
      [[unroll]] for (uint t = 0; t < CHUNK; t += MATRIX_K) {
        Left l;
        Right r;
        coopMatLoad(l, k_of, t * STRIDE + tile % S_ROW_TILES * MATRIX_M, STRIDE, COLUMNWISE);
        coopMatLoad(r, last_u_of, tile / S_ROW_TILES * MATRIX_N * U_STRIDE + t, U_STRIDE, COLUMNWISE);
        s[i] = coopMatMulAdd(l, r, s[i]);
      }
    }
  }
}
#endif

// the u of a column, from what the rows say without each other
void solve(uint row0, uint head, uint column0) {
  if (SELF / COLUMN_LANES >= COLUMNS) return;
  uint column = SELF / COLUMN_LANES, lane = SELF % COLUMN_LANES;
  uint v_column = 2 * N_K_HEADS * SIZE + head * SIZE + column0 + column;
#ifdef PLAIN
#define U(i) ks[(i) * KEPT + column] // in place
#else
#define U(i) u[i]
  float u[OWN_ROWS];
#endif
  UNROLL for (uint i = 0; i < OWN_ROWS; i++) {
    uint row = i * COLUMN_LANES + lane;
    float v = row0 + row < n_rows ? qkv[(row0 + row) * ROW_COLUMNS + v_column] : 0.0;
    U(i) = strength[row] * (v - exp(since[row]) * ks[row * KEPT + column]);
  }
  UNROLL for (uint t = 0; t < CHUNK - 1; t++) {
    float solved = FROM_LANE(U(t / COLUMN_LANES), t % COLUMN_LANES);
    UNROLL for (uint i = t / COLUMN_LANES; i < OWN_ROWS; i++) {
      U(i) -= a_of[(i * COLUMN_LANES + lane) * U_STRIDE + t] * solved; // 0 in rows up to t
    }
  }
  UNROLL for (uint i = 0; i < OWN_ROWS; i++) {
    uint row = i * COLUMN_LANES + lane;
    u_of[column * U_STRIDE + row] = HALF(U(i));
    last_u_of[column * U_STRIDE + row] = HALF(U(i) * exp(since[CHUNK - 1] - since[row]));
  }
}

void main() {
  uint head = gl_WorkGroupID.x * COLUMNS / SIZE, column0 = gl_WorkGroupID.x * COLUMNS % SIZE;
  uint k_head = key_head(head);
  uint of_columns = (head * SIZE + column0) * SIZE;
  uint before = state_before(0);
  load_state(before == NO_SLOT ? NO_SLOT : before + of_columns);
  load_rows(0, k_head * SIZE);
  float rate = a[head], bias = dt[head];
  for (uint row0 = 0; row0 < n_rows; row0 += CHUNK) {
    uint n = min(n_rows - row0, CHUNK);
    keep_rows(row0, k_head * SIZE);
    keep_state();
    if (SELF < CHUNK) {
      log_decay[SELF] = SELF < n ? log_decay_of(row0 + SELF, head, rate, bias) : 0.0;
      strength[SELF] = SELF < n ? strength_of(row0 + SELF, head) : 0.0;
    }
    barrier();
    load_rows(row0 + CHUNK, k_head * SIZE);
    products_of_rows();
    if (SELF < CHUNK) {
      float sum = 0.0;
      UNROLL for (uint i = 0; i < CHUNK; i++) sum += i <= SELF ? log_decay[i] : 0.0;
      since[SELF] = sum;
    }
    barrier();
    for (uint e = SELF; e < CHUNK * CHUNK; e += LOCAL_SIZE) {
      uint t = e / CHUNK, i = e % CHUNK, at = t * U_STRIDE + i;
      float decay = i <= t ? exp(since[t] - since[i]) : 0.0;
      a_of[at] = i < t ? strength[t] * decay * a_of[at] : 0.0;
      p_of[at] = HALF(decay * float(p_of[at]));
    }
    for (uint e = SELF; e < CHUNK * COLUMNS; e += LOCAL_SIZE) qs[e / COLUMNS * KEPT + e % COLUMNS] *= exp(since[e / COLUMNS]);
    barrier();
    solve(row0, head, column0);
    barrier();
    add_products_of_u(exp(since[CHUNK - 1]));
    barrier();
    for (uint e = SELF; e < n * COLUMNS; e += LOCAL_SIZE) {
      y[(row0 + e / COLUMNS) * N_V_HEADS * SIZE + head * SIZE + column0 + e % COLUMNS] = qs[e / COLUMNS * KEPT + e % COLUMNS];
    }
    uint behind = state_behind(row0 + n - 1);
    if (behind != NO_SLOT) store_state(behind + of_columns);
  }
}
