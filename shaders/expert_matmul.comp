// expert_matmul: expert_matvec for tiles of rows and slots, by cooperative matrices
// bindings: quants scales x tiles entries routes y step bias expert_scales
// constants: local_size columns tile_tokens subgroups_along_rows subgroups_along_tokens matrix_m matrix_n matrix_k tile_rows steps_ahead n_experts expert_rows first_tensor n_slots x_columns slot_columns listed tile_size has_bias has_scales is_weighed in_halves
// push: n_weight_rows y_offset y_stride
// dispatch: x = rows / tile_rows, rounded up; y = tiles * (tile_size / tile_tokens), rounded up; without a list, experts *
//   (tokens / tile_tokens)
// formats: all
// subgroup: basic
// requires: full subgroups; cooperative_matrix (float16 to float32, of 8 or 16 in each direction), fp16; rows of an expert a
//   multiple of 16, columns of TILE_COLUMNS
// numerics: those of matmul
// source: own; rows sorted by expert as in MegaBlocks (Gale et al. 2022, arXiv 2211.15841)
//
// x_columns: of a row of x, of which slot k reads those from k * slot_columns on. y has n_slots parts in a row.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint COLUMNS = 2048;
layout(constant_id = 2) const uint TILE_TOKENS = 64;
layout(constant_id = 3) const uint SUBGROUPS_ALONG_ROWS = 4;
layout(constant_id = 4) const uint SUBGROUPS_ALONG_TOKENS = 2;
layout(constant_id = 5) const uint MATRIX_M = 16; // rows, tokens and columns that one instruction multiplies
layout(constant_id = 6) const uint MATRIX_N = 16;
layout(constant_id = 7) const uint MATRIX_K = 16;
layout(constant_id = 8) const uint TILE_ROWS = 128;
layout(constant_id = 9) const uint STEPS_AHEAD = 1; // steps of the loop whose loads are under way together
layout(constant_id = 10) const uint N_EXPERTS = 128;
layout(constant_id = 11) const uint EXPERT_ROWS = 768;
layout(constant_id = 12) const uint FIRST_TENSOR = 0;
layout(constant_id = 13) const uint N_SLOTS = 8;
layout(constant_id = 14) const uint X_COLUMNS = 2048;
layout(constant_id = 15) const uint SLOT_COLUMNS = 0;
layout(constant_id = 16) const uint LISTED = 1;
layout(constant_id = 17) const uint TILE_SIZE = 64;
layout(constant_id = 18) const uint HAS_BIAS = 0;
layout(constant_id = 19) const uint HAS_SCALES = 0;
layout(constant_id = 20) const uint IS_WEIGHED = 0;
layout(constant_id = 21) const uint IN_HALVES = 0; // whether x has float16
layout(push_constant) uniform Push {
  uint n_weight_rows; // of an expert
  uint y_offset;      // where these rows begin in a slot's part of y
  uint y_stride;      // of rows of y
};
layout(std430, binding = 0) readonly buffer Quants { uvec4 quants[]; };
layout(std430, binding = 1) readonly buffer Scales { uint scales[]; };
layout(std430, binding = 2) readonly buffer X { vec4 x[]; };
layout(std430, binding = 2) readonly buffer XInHalves { uvec4 x_halves[]; }; // the same
layout(std430, binding = 3) readonly buffer Tiles { uvec4 tiles[]; };
layout(std430, binding = 4) readonly buffer Entries { uint entries[]; };
layout(std430, binding = 5) readonly buffer Routes { float routes[]; };
layout(std430, binding = 6) writeonly buffer Y { vec4 y[]; };
#define STEP_BINDING 7
layout(std430, binding = 8) readonly buffer Bias { vec4 bias[]; };
layout(std430, binding = 9) readonly buffer ExpertScales { float expert_scales[]; };
const uint SPAN = TILE_TOKENS;
#include "lib/step.glsl"
#include "lib/expert_rows.glsl"
#include "lib/expert_tile.glsl"
#define NEEDS_HALVES
#include "lib/pack.glsl"
#include "formats/format.glsl"
#include "lib/halves.glsl"

uint first_of_x[TILE_TOKENS * (LOCAL_SIZE / TILE_ROWS * 4) / LOCAL_SIZE]; // of each chunk of an invocation
#define FIRST_OF_X(i, token) first_of_x[i]
const uint N_PARTS = 1;
#include "lib/matmul_tile.glsl"

const uint PATCH_FOURS = MATRIX_M * MATRIX_N / 4;

// Four rows of a slot's result.
void store_four(Tile tile, uint row, uint i, uvec4 sums_of_four) {
  vec4 v = uintBitsToFloat(sums_of_four);
  uint slot = slot_of(tile, i);
  if (HAS_SCALES != 0) v *= expert_scales[scale_place(tile.expert, row)];
  if (HAS_BIAS != 0) v += bias[bias_place(tile.expert, row) / 4];
  if (IS_WEIGHED != 0) v *= routes[slot / N_SLOTS * (2 * N_SLOTS + 1) + N_SLOTS + slot % N_SLOTS];
  y[(slot / N_SLOTS * y_stride + y_stride / N_SLOTS * (slot % N_SLOTS) + y_offset + row) / 4] = v;
}

void main() {
  Tile tile = tile_of(gl_WorkGroupID.y);
  if (tile.n == 0) return;
  prepare_weights();
  uint self = gl_LocalInvocationIndex, row0 = gl_WorkGroupID.x * TILE_ROWS;
  [[unroll]] for (uint i = 0; i < X_CHUNKS; i++) {
    uint slot = slot_of(tile, (self + i * LOCAL_SIZE) / EIGHTS);
    first_of_x[i] = (slot / N_SLOTS * X_COLUMNS + slot % N_SLOTS * SLOT_COLUMNS) / 4;
  }
  [[unroll]] for (uint i = 0; i < ROW_STEPS * TOKEN_STEPS; i++) sums[i] = Sums(0.0);
  uint row = min(row0 + self / TILE_BLOCKS, n_weight_rows - 1);
  bool multiplies = subgroup_multiplies() && first_token_step() * MATRIX_N < tile.n;
  add_products(expert_row(tile.expert, row) * BLOCKS + self % TILE_BLOCKS, multiplies);

  barrier(); // the tile of weights has been read; a subgroup brings its matrices there, whose rows go to different places
  uint patch0 = gl_SubgroupID * PATCH_FOURS;
  [[unroll]] for (uint r = 0; r < ROW_STEPS; r++) {
    [[unroll]] for (uint t = 0; t < TOKEN_STEPS; t++) {
      uint first_row = row0 + (first_row_step() + r) * MATRIX_M, first = (first_token_step() + t) * MATRIX_N;
      bool is_wanted = multiplies && first_row < n_weight_rows && first < tile.n;
      if (is_wanted) {
        coopMatStore(sums[r * TOKEN_STEPS + t], w_tile, patch0, MATRIX_M / 4, gl_CooperativeMatrixLayoutColumnMajor);
      }
      subgroupBarrier(); // of all subgroups: on lavapipe it is one of the workgroup
      for (uint four = gl_SubgroupInvocationID; is_wanted && four < PATCH_FOURS; four += gl_SubgroupSize) {
        uint i = first + four / (MATRIX_M / 4);
        if (i < tile.n) store_four(tile, first_row + four % (MATRIX_M / 4) * 4, i, w_tile[patch0 + four]);
      }
      subgroupBarrier();
    }
  }
}
