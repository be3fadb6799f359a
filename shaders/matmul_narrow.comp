// matmul_narrow: y = factor * activation(W x + bias) (+ add) for up to 32 tokens, by cooperative matrices
// bindings: quants scales x add y step bias y_halves
// constants: local_size columns n_splits row_tiles token_tiles matrix_m matrix_n matrix_k lanes is_direct steps_ahead x_ahead adds has_bias factor gates activation has_halves
// push: n_y_rows y_offset y_stride n_tokens
// dispatch: x = rows of y / (matrix_m * row_tiles / (1 + gates)), rounded up
// formats: all
// subgroup: basic
// requires: full subgroups; cooperative_matrix (float16 to float32, of 8 or 16 in each direction), fp16; n_y_rows and places
//   in y multiples of 4; x in the order of lib/fragments.glsl
// numerics: activations, scales and weights rounded to float16, float32 sums; the same whatever the number of tokens
// source: own; weights that go from memory to matrices in registers as in Marlin (Frantar et al. 2024, arXiv 2408.11743)
//
// Each subgroup works alone on rows of the matrix and every n_splits-th step of the columns; its workgroup adds up in the
// end. is_direct: lanes hold the elements of matrices as shaders/matrix_layout.comp must have found: element i of a lane is
// value i % VALUES of block lane % LANES of row (or token) lane / LANES + i / VALUES * (MATRIX_M / HELD). Otherwise
// subgroups bring weights to matrices through shared memory, and LANES is 1.
// gates = 1: W's rows are n_y_rows of the gate, then n_y_rows of up, and y = activation(gate) * up.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint N_SPLITS = 8; // subgroups of a workgroup
layout(constant_id = 3) const uint ROW_TILES = 2; // of MATRIX_M rows of W
layout(constant_id = 4) const uint TOKEN_TILES = 1;
layout(constant_id = 5) const uint MATRIX_M = 16; // rows, tokens and columns that one instruction multiplies
layout(constant_id = 6) const uint MATRIX_N = 8;
layout(constant_id = 7) const uint MATRIX_K = 16;
layout(constant_id = 8) const uint LANES = 4;
layout(constant_id = 9) const uint IS_DIRECT = 1;
layout(constant_id = 10) const uint STEPS_AHEAD = 1; // steps of the loop whose loads are under way together
layout(constant_id = 11) const uint X_AHEAD = 0; // whether activations are loaded as early, where is_direct
layout(constant_id = 12) const uint ADDS = 0;
layout(constant_id = 13) const uint HAS_BIAS = 0; // one number for each column of y, or of gate and up
layout(constant_id = 14) const uint FACTOR = 0x3f800000; // 1.0
layout(constant_id = 15) const uint GATES = 0;
layout(constant_id = 16) const uint ACTIVATION = 0; // 0: none
layout(constant_id = 17) const uint HAS_HALVES = 0; // whether results are stored in y_halves too, as x is
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
#define FRAGMENT_WORD(word) y_halves[word]
const uint FRAGMENTS = MATRIX_N | MATRIX_K << 8 | LANES << 16;
#include "lib/step.glsl"
#include "formats/format.glsl"
#include "lib/pairs.glsl"
#include "lib/activations.glsl"
#include "lib/fragments.glsl"

const uint BLOCKS = COLUMNS / 32;
const uint SUBGROUP = LOCAL_SIZE / N_SPLITS; // its lanes
const uint HELD = IS_DIRECT != 0 ? MATRIX_M * LANES / SUBGROUP : 1; // rows of a tile of which a lane has a block
const uint STEP_BLOCKS = SUBGROUP * HELD / MATRIX_M;                // of a row, that a subgroup takes together
const uint STEPS = (BLOCKS + STEP_BLOCKS - 1) / STEP_BLOCKS;
const uint Y_TILES = ROW_TILES / (1 + GATES);
const uint HELD_TOKENS = IS_DIRECT != 0 ? MATRIX_N * LANES / SUBGROUP : 1; // of a tile, of which a lane has a block
const uint X_PARTS = 4 * HELD_TOKENS * TOKEN_TILES;
const uint X_STEPS = X_AHEAD != 0 ? STEPS_AHEAD : 1;
const uint VALUES = MATRIX_K / LANES;    // of a block in a matrix
const uint HALF_FRAGMENTS = 16 / VALUES; // matrices of half a block
const uint STRIDE = STEP_BLOCKS * 4 + 1; // uvec4 of a row of weights in shared memory, one against bank conflicts
const uint PART = MATRIX_M * MATRIX_N * TOKEN_TILES / 4; // uvec4 of a tile's sums
const uint WEIGHTS_ROOM = IS_DIRECT != 0 ? 0 : N_SPLITS * MATRIX_M * STRIDE;
const uint SUMS_ROOM = N_SPLITS * (1 + GATES) * PART;

#define WMatrix coopmat<float16_t, gl_ScopeSubgroup, MATRIX_M, MATRIX_K, gl_MatrixUseA>
#define XMatrix coopmat<float16_t, gl_ScopeSubgroup, MATRIX_K, MATRIX_N, gl_MatrixUseB>
#define Sums coopmat<float, gl_ScopeSubgroup, MATRIX_M, MATRIX_N, gl_MatrixUseAccumulator>

shared uvec4 pieces[WEIGHTS_ROOM > SUMS_ROOM ? WEIGHTS_ROOM : SUMS_ROOM]; // of each subgroup: weights, in the end sums

uint lane, split;
uint first_rows[ROW_TILES * HELD]; // first block of each row that a lane has blocks of
uint lane_block;                   // which of a step's blocks it has
Weights w[STEPS_AHEAD * ROW_TILES * HELD];
uvec4 x_words[X_STEPS * X_PARTS];   // of its tokens' blocks, by tiles, tokens and quarters
Sums sums[ROW_TILES * TOKEN_TILES];

// first row of W of a tile of rows, which may lie beyond the last one
uint row_of_tile(uint tile) {
  uint row = (gl_WorkGroupID.x * Y_TILES + tile / (1 + GATES)) * MATRIX_M;
  return GATES != 0 && tile % 2 != 0 ? n_y_rows + row : row;
}

void load_step(uint ahead, uint step) {
  uint block = min(step * STEP_BLOCKS + lane_block, BLOCKS - 1);
  [[unroll]] for (uint i = 0; i < ROW_TILES * HELD; i++) {
    w[ahead * ROW_TILES * HELD + i] = load_weights(first_rows[i] + block);
  }
}

void load_x(uint ahead, uint step) {
  [[unroll]] for (uint i = 0; i < X_PARTS; i++) {
    uint tile = i / (4 * HELD_TOKENS), held = i / 4 % HELD_TOKENS;
    uint token = tile * MATRIX_N + lane / LANES + held * (MATRIX_N / HELD_TOKENS);
    x_words[ahead * X_PARTS + i] = x[fragment_quarter(BLOCKS, token, step * STEP_BLOCKS + lane_block, i % 4)];
  }
}

void multiply_directly(uint ahead, uint step) {
  uint block = step * STEP_BLOCKS + lane_block;
  bool is_there = BLOCKS % STEP_BLOCKS == 0 || block < BLOCKS;
  if (X_AHEAD == 0) load_x(0, step);
  uint x_first = X_AHEAD * ahead * X_PARTS;
  [[unroll]] for (uint half_ = 0; half_ < 2; half_++) {
    [[unroll]] for (uint r = 0; r < ROW_TILES; r++) {
      f16vec2 pairs[HELD][8];
      [[unroll]] for (uint i = 0; i < HELD; i++) {
        uint row = r * HELD + i;
        pairs_of_half(w[ahead * ROW_TILES * HELD + row], first_rows[row] + min(block, BLOCKS - 1), half_, is_there, pairs[i]);
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
            uint quarter = x_first + 4 * (t * HELD_TOKENS + i / VALUES) + 2 * half_ + order / 8;
            uint word = x_words[quarter][order / 2 % 4];
            x_part[i] = unpackFloat2x16(word)[order % 2];
          }
          sums[r * TOKEN_TILES + t] = coopMatMulAdd(w_part, x_part, sums[r * TOKEN_TILES + t]);
        }
      }
    }
  }
}

void multiply_through_memory(uint ahead, uint step) {
  uint piece = split * MATRIX_M * STRIDE;
  [[unroll]] for (uint r = 0; r < ROW_TILES; r++) {
    uint to = piece + lane / STEP_BLOCKS * STRIDE + lane_block * 4;
    uint block = first_rows[r] + min(step * STEP_BLOCKS + lane_block, BLOCKS - 1);
    subgroupBarrier(); // the last weights have been read
    [[unroll]] for (uint half_ = 0; half_ < 2; half_++) {
      f16vec2 pairs[8];
      pairs_of_half(w[ahead * ROW_TILES + r], block, half_, true, pairs);
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
          sums[r * TOKEN_TILES + t] = coopMatMulAdd(w_part, x_part, sums[r * TOKEN_TILES + t]);
        }
      }
    }
  }
}

// the sums of all subgroups: four rows of a tile of the pair, of a token
vec4 sum_of_splits(uint tile, uint four) {
  vec4 sum = vec4(0.0);
  [[unroll]] for (uint s = 0; s < N_SPLITS; s++) {
    sum += uintBitsToFloat(pieces[(s * (1 + GATES) + tile) * PART + four]);
  }
  return WEIGHT_SCALE == 1.0 ? sum : sum * (1.0 / WEIGHT_SCALE);
}

void store_four(uint four, uint token, uint row) {
  vec4 v = sum_of_splits(0, four);
  uint column = y_offset + row;
  if (HAS_BIAS != 0) v += bias[column / 4];
  if (ACTIVATION != 0) v = ACTIVATED(v);
  if (GATES != 0) {
    vec4 up = sum_of_splits(1, four);
    if (HAS_BIAS != 0) up += bias[(column + n_y_rows) / 4];
    v *= UP_FACTOR(up);
  }
  if (FACTOR != 0x3f800000) v *= uintBitsToFloat(FACTOR);
  uint index = (token * y_stride + column) / 4;
  if (ADDS != 0) v += add[index];
  y[index] = v;
  if (HAS_HALVES != 0) store_fragments(token, y_stride / 32, column / 32, column % 32 / 4, v);
}

void main() {
  prepare_weights();
  lane = gl_SubgroupInvocationID;
  split = gl_SubgroupID;
  lane_block = lane % STEP_BLOCKS;
  [[unroll]] for (uint i = 0; i < ROW_TILES * HELD; i++) {
    uint row = row_of_tile(i / HELD) + lane / STEP_BLOCKS + i % HELD * (MATRIX_M / HELD);
    first_rows[i] = min(row, n_y_rows * (1 + GATES) - 1) * BLOCKS;
  }
  [[unroll]] for (uint i = 0; i < ROW_TILES * TOKEN_TILES; i++) sums[i] = Sums(0.0);

  [[unroll]] for (uint s = 0; s < STEPS_AHEAD; s++) {
    load_step(s, split + s * N_SPLITS);
    if (X_AHEAD != 0 && split + s * N_SPLITS < STEPS) load_x(s, split + s * N_SPLITS);
  }
  for (uint first = 0; first < STEPS; first += STEPS_AHEAD * N_SPLITS) {
    [[unroll]] for (uint s = 0; s < STEPS_AHEAD; s++) {
      uint step = first + s * N_SPLITS + split;
      if (first + s * N_SPLITS >= STEPS) break; // for all subgroups: barriers of some would be those of all on lavapipe
      if (IS_DIRECT == 0) multiply_through_memory(s, step);
      else if (step < STEPS) multiply_directly(s, step);
      if (step + STEPS_AHEAD * N_SPLITS < STEPS) {
        load_step(s, step + STEPS_AHEAD * N_SPLITS);
        if (X_AHEAD != 0) load_x(s, step + STEPS_AHEAD * N_SPLITS);
      }
    }
  }

  [[unroll]] for (uint tile = 0; tile < Y_TILES; tile++) {
    uint row0 = (gl_WorkGroupID.x * Y_TILES + tile) * MATRIX_M;
    barrier(); // what was there has been read
    [[unroll]] for (uint i = 0; i < (1 + GATES) * TOKEN_TILES; i++) {
      uint to = (split * (1 + GATES) + i / TOKEN_TILES) * PART + i % TOKEN_TILES * (PART / TOKEN_TILES);
      coopMatStore(sums[tile * (1 + GATES) * TOKEN_TILES + i], pieces, to, MATRIX_M / 4,
                   gl_CooperativeMatrixLayoutColumnMajor);
    }
    barrier();
    for (uint four = gl_LocalInvocationIndex; four < PART; four += LOCAL_SIZE) {
      uint token = four / (MATRIX_M / 4), row = row0 + four % (MATRIX_M / 4) * 4;
      if (token < min(n_rows, n_tokens) && row < n_y_rows) store_four(four, token, row);
    }
  }
}
