// matmul_narrow: y = factor * activation(W x + bias) (+ add) for up to 32 tokens, by cooperative matrices
// bindings: quants scales x add y step bias y_halves norm_weight squares norm_factors rope_table k_cache v_cache
// constants: local_size columns n_splits token_tiles matrix_m matrix_n matrix_k lanes is_direct steps_ahead adds has_bias factor gates activation has_halves norms next_norm eps factors_at stores_heads n_heads n_kv_heads head_dim rope_dims table
// push: n_y_rows y_offset y_stride n_tokens
// dispatch: x = rows of y / matrix_m, rounded up
// formats: all
// subgroup: basic shuffle
// requires: full subgroups; cooperative_matrix (float16 to float32, of 8 or 16 in each direction), fp16; n_y_rows and places
//   in y multiples of 4, with norms and next_norm all columns of 4 matrix_m; x in the order of lib/fragments.glsl
// numerics: activations, scales and weights rounded to float16, float32 sums; the same whatever the number of tokens
// source: own; weights that go from memory to matrices in registers as in Marlin (Frantar et al. 2024, arXiv 2408.11743)
//
// Each subgroup works alone on rows of the matrix and every n_splits-th step of the columns; its workgroup adds up in the
// end. is_direct: lanes hold the elements of matrices as shaders/matrix_layout.comp must have found: element i of a lane is
// value i % VALUES of block lane % LANES of row (or token) lane / LANES + i / VALUES * (MATRIX_M / HELD). Otherwise
// subgroups bring weights to matrices through shared memory, and LANES is 1.
// gates = 1: W's rows are n_y_rows of the gate, then n_y_rows of up, and y = activation(gate) * up.
//
// An RMS norm between two products needs no dispatch of its own: next_norm: y_halves gets y times the norm's weights and a
// power of two, and squares the sums of y's squares of every matrix_m columns. norms: x comes from such a product, and sums
// are multiplied by what is missing, 1 / root mean square, which comes to norm_factors too. The power of two follows from
// the token's last norm: float16 then holds numbers of up to 2^23 times its root mean square.
// stores_heads: y is queries, keys and values: queries, rotated by pairs of neighbours, go to y, and keys and values to the
// cache of float16, as in shaders/rope.comp.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint N_SPLITS = 8; // subgroups of a workgroup
layout(constant_id = 3) const uint TOKEN_TILES = 1;
layout(constant_id = 4) const uint MATRIX_M = 16; // rows, tokens and columns that one instruction multiplies
layout(constant_id = 5) const uint MATRIX_N = 8;
layout(constant_id = 6) const uint MATRIX_K = 16;
layout(constant_id = 7) const uint LANES = 4;
layout(constant_id = 8) const uint IS_DIRECT = 1;
layout(constant_id = 9) const uint STEPS_AHEAD = 1; // steps of the loop whose weights are under way together
layout(constant_id = 10) const uint ADDS = 0;
layout(constant_id = 11) const uint HAS_BIAS = 0; // one number for each column of y, or of gate and up
layout(constant_id = 12) const uint FACTOR = 0x3f800000; // 1.0
layout(constant_id = 13) const uint GATES = 0;
layout(constant_id = 14) const uint ACTIVATION = 0; // 0: none
layout(constant_id = 15) const uint HAS_HALVES = 0; // whether results are stored in y_halves too, as x is
layout(constant_id = 16) const uint NORMS = 0;
layout(constant_id = 17) const uint NEXT_NORM = 0;
layout(constant_id = 18) const uint EPS = 0x3727c5ac; // 1e-5
layout(constant_id = 19) const uint FACTORS_AT = 0; // where norm_factors of the last norm begin; NORMS leaves its own at the other place
layout(constant_id = 20) const uint STORES_HEADS = 0;
layout(constant_id = 21) const uint N_HEADS = 32;
layout(constant_id = 22) const uint N_KV_HEADS = 8;
layout(constant_id = 23) const uint HEAD_DIM = 128;
layout(constant_id = 24) const uint ROPE_DIMS = 128; // a multiple of 4
layout(constant_id = 25) const uint TABLE = 0;       // as in lib/kvcache.glsl
layout(push_constant) uniform Push {
  uint n_y_rows;
  uint y_offset; // where these rows begin in a row of y
  uint y_stride;
  uint n_tokens;   // most tokens that y has room for
};
layout(std430, binding = 0) readonly buffer Quants { uvec4 quants[]; };
layout(std430, binding = 1) readonly buffer Scales { uint scales[]; };
layout(std430, binding = 2) readonly buffer X { uvec4 x[]; };
layout(std430, binding = 3) readonly buffer Add { vec4 add[]; };
layout(std430, binding = 4) writeonly buffer Y { vec4 y[]; };
#define STEP_BINDING 5
layout(std430, binding = 6) readonly buffer Bias { vec4 bias[]; };
layout(std430, binding = 7) writeonly buffer YHalves { uint y_halves[]; };
layout(std430, binding = 8) readonly buffer NormWeight { vec4 norm_weight[]; };
layout(std430, binding = 9) buffer Squares { float squares[]; }; // of each token, by MATRIX_M columns
layout(std430, binding = 9) readonly buffer SquaresByFour { vec4 square_fours[]; };
layout(std430, binding = 10) buffer NormFactors { float norm_factors[]; }; // of each token, twice
layout(std430, binding = 11) readonly buffer RopeTable { vec2 rope_table[]; };
#define K_BINDING 12
#define V_BINDING 13
const uint K_Q8_0 = 0, V_Q8_0 = 0;
#define FRAGMENT_WORD(word) y_halves[word]
const uint FRAGMENTS = MATRIX_N | MATRIX_K << 8 | LANES << 16;
#include "lib/step.glsl"
#include "formats/format.glsl"
#include "lib/pairs.glsl"
#include "lib/activations.glsl"
#include "lib/fragments.glsl"
#include "lib/kvcache.glsl"

const uint BLOCKS = COLUMNS / 32;
const uint TILES = 1 + GATES; // of MATRIX_M rows of W, of a workgroup
const uint SUBGROUPS = N_SPLITS * TILES;
const uint SUBGROUP = LOCAL_SIZE / SUBGROUPS; // its lanes
const uint HELD = IS_DIRECT != 0 ? MATRIX_M * LANES / SUBGROUP : 1; // rows of a tile of which a lane has a block
const uint STEP_BLOCKS = SUBGROUP * HELD / MATRIX_M;                // of a row, that a subgroup takes together
const uint STEPS = (BLOCKS + STEP_BLOCKS - 1) / STEP_BLOCKS;
const uint HELD_TOKENS = IS_DIRECT != 0 ? MATRIX_N * LANES / SUBGROUP : 1; // of a tile, of which a lane has a block
const uint X_PARTS = 2 * HELD_TOKENS * TOKEN_TILES;
const uint OWN_STEPS = (STEPS + N_SPLITS - 1) / N_SPLITS; // of a subgroup
const uint VALUES = MATRIX_K / LANES;    // of a block in a matrix
const uint HALF_FRAGMENTS = 16 / VALUES; // matrices of half a block
const uint STRIDE = STEP_BLOCKS * 4 + 1; // uvec4 of a row of weights in shared memory, one against bank conflicts
const uint PART = MATRIX_M * MATRIX_N * TOKEN_TILES / 4; // uvec4 of a tile's sums
const uint WEIGHTS_ROOM = IS_DIRECT != 0 ? 0 : SUBGROUPS * MATRIX_M * STRIDE;
const uint SUMS_ROOM = SUBGROUPS * PART;

#define WMatrix coopmat<float16_t, gl_ScopeSubgroup, MATRIX_M, MATRIX_K, gl_MatrixUseA>
#define XMatrix coopmat<float16_t, gl_ScopeSubgroup, MATRIX_K, MATRIX_N, gl_MatrixUseB>
#define Sums coopmat<float, gl_ScopeSubgroup, MATRIX_M, MATRIX_N, gl_MatrixUseAccumulator>

shared uvec4 pieces[WEIGHTS_ROOM > SUMS_ROOM ? WEIGHTS_ROOM : SUMS_ROOM]; // of each subgroup: weights, in the end sums

uint lane, subgroup, split;
uint first_blocks[HELD]; // of each row that a lane has blocks of
uint lane_block;         // which of a step's blocks it has
Weights next[STEPS_AHEAD * HELD], w[HELD];
Sums sums[TOKEN_TILES];

// of the i-th row that a lane has blocks of; rows may lie beyond the last one
uint first_block(uint i) {
  uint row = gl_WorkGroupID.x * MATRIX_M + lane / STEP_BLOCKS + i * (MATRIX_M / HELD);
  return min(subgroup % TILES * n_y_rows + row, n_y_rows * TILES - 1) * BLOCKS;
}

uint step_of(uint i) { return split + i * N_SPLITS; }

void load(uint ahead, uint step) {
  uint block = min(step * STEP_BLOCKS + lane_block, BLOCKS - 1);
  [[unroll]] for (uint i = 0; i < HELD; i++) next[ahead * HELD + i] = load_weights(first_blocks[i] + block);
}

void multiply_directly(uint step) {
  uint block = step * STEP_BLOCKS + lane_block;
  bool is_there = BLOCKS % STEP_BLOCKS == 0 || block < BLOCKS;
  [[unroll]] for (uint half_ = 0; half_ < 2; half_++) {
    uvec4 x_words[X_PARTS]; // half of each of its tokens' blocks: all at once would take too many registers
    [[unroll]] for (uint i = 0; i < X_PARTS; i++) {
      uint tile = i / (2 * HELD_TOKENS), held = i / 2 % HELD_TOKENS;
      uint token = tile * MATRIX_N + lane / LANES + held * (MATRIX_N / HELD_TOKENS);
      x_words[i] = x[fragment_quarter(BLOCKS, token, block, 2 * half_ + i % 2)];
    }
    f16vec2 pairs[HELD][8];
    [[unroll]] for (uint i = 0; i < HELD; i++) {
      pairs_of_half(w[i], first_blocks[i] + min(block, BLOCKS - 1), half_, is_there, pairs[i]);
    }
    [[unroll]] for (uint fragment = 0; fragment < HALF_FRAGMENTS; fragment++) {
      WMatrix w_part;
      [[unroll]] for (uint i = 0; i < HELD * VALUES; i++) {
        uint order = fragment * VALUES + i % VALUES;
        w_part[i] = pairs[i / VALUES][order / 2][order % 2];
      }
      [[unroll]] for (uint t = 0; t < TOKEN_TILES; t++) {
        XMatrix x_part;
        [[unroll]] for (uint i = 0; i < HELD_TOKENS * VALUES; i++) {
          uint order = fragment * VALUES + i % VALUES;
          uint quarter = 2 * (t * HELD_TOKENS + i / VALUES) + order / 8;
          x_part[i] = unpackFloat2x16(x_words[quarter][order / 2 % 4])[order % 2];
        }
        sums[t] = coopMatMulAdd(w_part, x_part, sums[t]);
      }
    }
  }
}

void multiply_through_memory(uint step) {
  uint piece = subgroup * MATRIX_M * STRIDE, to = piece + lane / STEP_BLOCKS * STRIDE + lane_block * 4;
  uint block = first_blocks[0] + min(step * STEP_BLOCKS + lane_block, BLOCKS - 1);
  subgroupBarrier(); // the last weights have been read
  [[unroll]] for (uint half_ = 0; half_ < 2; half_++) {
    f16vec2 pairs[8];
    pairs_of_half(w[0], block, half_, true, pairs);
    [[unroll]] for (uint i = 0; i < 2; i++) {
      pieces[to + 2 * half_ + i] = uvec4(packFloat2x16(pairs[4 * i]), packFloat2x16(pairs[4 * i + 1]),
                                         packFloat2x16(pairs[4 * i + 2]), packFloat2x16(pairs[4 * i + 3]));
    }
  }
  subgroupBarrier();
  for (uint b = 0; b < STEP_BLOCKS; b++) {
    if (step * STEP_BLOCKS + b >= BLOCKS) break;
    [[unroll]] for (uint i = 0; i < 2 * HALF_FRAGMENTS; i++) {
      WMatrix w_part;
      coopMatLoad(w_part, pieces, piece + b * 4 + i * (MATRIX_K / 8), STRIDE, gl_CooperativeMatrixLayoutRowMajor);
      [[unroll]] for (uint t = 0; t < TOKEN_TILES; t++) {
        XMatrix x_part;
        uint from = fragment_word(BLOCKS, t, step * STEP_BLOCKS + b, i) / 4;
        coopMatLoad(x_part, x, from, MATRIX_K / 8, gl_CooperativeMatrixLayoutColumnMajor);
        sums[t] = coopMatMulAdd(w_part, x_part, sums[t]);
      }
    }
  }
}

// the sums of all subgroups: four rows of a tile of the pair, of a token
vec4 sum_of_splits(uint tile, uint four) {
  vec4 sum = vec4(0.0);
  [[unroll]] for (uint s = 0; s < N_SPLITS; s++) {
    sum += uintBitsToFloat(pieces[(s * TILES + tile) * PART + four]);
  }
  return WEIGHT_SCALE == 1.0 ? sum : sum * (1.0 / WEIGHT_SCALE);
}

// Norms of RMS: y without the factor of x's norm, of each token; what y_halves of the next norm is multiplied by.
const uint SQUARE_FOURS = COLUMNS / (4 * MATRIX_M); // of a token
const uint OWN_TOKENS = (TOKEN_TILES * MATRIX_N + SUBGROUPS - 1) / SUBGROUPS; // of a subgroup
shared float missing[NORMS != 0 ? MAX_NARROW : 1], next_scale[NEXT_NORM != 0 ? MAX_NARROW : 1];

// 2^-8 of the largest power of two in it
float power_of_two(float factor) { return uintBitsToFloat((floatBitsToUint(factor) >> 23) - 8 << 23); }

void prepare_norms() {
  uint n = min(n_rows, n_tokens);
  if (NORMS != 0) {
    float sum[OWN_TOKENS];
    [[unroll]] for (uint t = 0; t < OWN_TOKENS; t++) sum[t] = 0.0;
    for (uint i = lane; i < SQUARE_FOURS; i += SUBGROUP) {
      [[unroll]] for (uint t = 0; t < OWN_TOKENS; t++) {
        sum[t] += dot(square_fours[min(subgroup + t * SUBGROUPS, n - 1) * SQUARE_FOURS + i], vec4(1.0));
      }
    }
    [[unroll]] for (uint t = 0; t < OWN_TOKENS; t++) {
      [[unroll]] for (uint m = 0; m < 7; m++) {
        if ((1u << m) < SUBGROUP) sum[t] += subgroupShuffleXor(sum[t], 1u << m);
      }
      uint token = subgroup + t * SUBGROUPS;
      float factor = inversesqrt(sum[t] / float(COLUMNS) + uintBitsToFloat(EPS));
      if (lane == 0 && token < n) {
        missing[token] = factor / power_of_two(norm_factors[FACTORS_AT + token]);
        if (gl_WorkGroupID.x == 0 && y_offset == 0) norm_factors[(MAX_NARROW - FACTORS_AT) + token] = factor;
      }
    }
  }
  if (NEXT_NORM != 0 && gl_LocalInvocationIndex < n) {
    next_scale[gl_LocalInvocationIndex] = power_of_two(norm_factors[FACTORS_AT + gl_LocalInvocationIndex]);
  }
}

vec4 rotated(vec4 v, uint d, uint position) {
  if (d >= ROPE_DIMS) return v;
  vec2 first = rope_table[position * (ROPE_DIMS / 2) + d / 2], second = rope_table[position * (ROPE_DIMS / 2) + d / 2 + 1];
  return vec4(v.x * first.x - v.y * first.y, v.y * first.x + v.x * first.y,
              v.z * second.x - v.w * second.y, v.w * second.x + v.z * second.y);
}

// four columns of queries, keys and values
void store_heads(vec4 v, uint token, uint column) {
  uint head = column / HEAD_DIM, d = column % HEAD_DIM, position = rows[token].y;
  if (head < N_HEADS + N_KV_HEADS) v = rotated(v, d, position);
  if (head < N_HEADS) {
    y[(token * N_HEADS * HEAD_DIM + column) / 4] = v;
    return;
  }
  uint unit = unit_of(rows[token].z, (head - N_HEADS) % N_KV_HEADS, position);
  uvec2 halves = uvec2(packHalf2x16(v.xy), packHalf2x16(v.zw));
  if (head < N_HEADS + N_KV_HEADS) store_key(unit, position % KV_BLOCK, d / 4, halves);
  else store_value(unit, position % KV_BLOCK, d / 4, halves);
}

void store_four(uint four, uint token, uint row) {
  float factor = NORMS != 0 ? missing[token] : 1.0;
  vec4 v = sum_of_splits(0, four);
  uint column = y_offset + row;
  if (NORMS != 0) v *= factor;
  if (HAS_BIAS != 0) v += bias[column / 4];
  if (ACTIVATION != 0) v = ACTIVATED(v);
  if (GATES != 0) {
    vec4 up = sum_of_splits(1, four);
    if (NORMS != 0) up *= factor;
    if (HAS_BIAS != 0) up += bias[(column + n_y_rows) / 4];
    v *= UP_FACTOR(up);
  }
  if (FACTOR != 0x3f800000) v *= uintBitsToFloat(FACTOR);
  if (STORES_HEADS != 0) {
    store_heads(v, token, column);
    return;
  }
  uint index = (token * y_stride + column) / 4;
  if (ADDS != 0) v += add[index];
  y[index] = v;
  if (NEXT_NORM != 0) {
    float sum = dot(v, v); // of the lanes that have the rest of the tile's columns
    [[unroll]] for (uint m = 1; m < MATRIX_M / 4; m *= 2) sum += subgroupShuffleXor(sum, m);
    if (four % (MATRIX_M / 4) == 0) squares[(token * y_stride + column) / MATRIX_M] = sum;
    v = clamp(v * norm_weight[column / 4] * next_scale[token], -65504.0, 65504.0);
  }
  if (HAS_HALVES != 0) store_fragments(token, y_stride / 32, column / 32, column % 32 / 4, v);
}

void multiply() {
  [[unroll]] for (uint t = 0; t < TOKEN_TILES; t++) sums[t] = Sums(0.0);
  for (uint first = 0; first < OWN_STEPS; first += STEPS_AHEAD) {
    [[unroll]] for (uint s = 0; s < STEPS_AHEAD; s++) {
      uint i = first + s, step = step_of(i);
      if (i >= OWN_STEPS) break; // for all subgroups: barriers of some would be those of all on lavapipe
      [[unroll]] for (uint k = 0; k < HELD; k++) w[k] = next[s * HELD + k];
      if (IS_DIRECT == 0) multiply_through_memory(step);
      else if (step < STEPS) multiply_directly(step);
      if (i + STEPS_AHEAD < OWN_STEPS && step_of(i + STEPS_AHEAD) < STEPS) load(s, step_of(i + STEPS_AHEAD));
    }
  }
}

void main() {
  prepare_weights();
  lane = gl_SubgroupInvocationID;
  subgroup = gl_SubgroupID;
  split = subgroup / TILES;
  lane_block = lane % STEP_BLOCKS;
  [[unroll]] for (uint i = 0; i < HELD; i++) first_blocks[i] = first_block(i);
  [[unroll]] for (uint s = 0; s < STEPS_AHEAD; s++) load(s, step_of(s));
  prepare_norms();
  multiply();
  barrier(); // weights in shared memory have been read
  [[unroll]] for (uint t = 0; t < TOKEN_TILES; t++) {
    coopMatStore(sums[t], pieces, subgroup * PART + t * (PART / TOKEN_TILES), MATRIX_M / 4,
                 gl_CooperativeMatrixLayoutColumnMajor);
  }
  barrier();
  for (uint four = subgroup * SUBGROUP + lane; four < PART; four += LOCAL_SIZE) {
    uint token = four / (MATRIX_M / 4), row = gl_WorkGroupID.x * MATRIX_M + four % (MATRIX_M / 4) * 4;
    if (token < min(n_rows, n_tokens) && row < n_y_rows) store_four(four, token, row);
  }
}
