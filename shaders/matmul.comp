// matmul: y = factor * (W x + bias) (+ add) for tiles of rows and tokens, by cooperative matrices
// bindings: quants scales x add y step bias
// constants: local_size columns tile_tokens subgroups_along_rows subgroups_along_tokens adds matrix_m matrix_n matrix_k tile_rows steps_ahead has_bias factor n_parts in_halves
// push: n_weight_rows y_offset y_stride
// dispatch: x = rows / tile_rows, rounded up; y = n_parts * (tokens / tile_tokens, rounded up)
// formats: all
// subgroup: basic
// requires: full subgroups; cooperative_matrix (float16 to float32, of 8 or 16 in each direction), fp16; rows a multiple of 16,
//   columns of TILE_COLUMNS; x and y hold whole tiles of tokens
// numerics: weights and activations rounded to float16, float32 sums
// source: own; tiles in shared memory as in ggml's mul_mm and CUTLASS
//
// n_parts: parts of the columns, each with a y of its own behind the last one's; sum_parts adds them.
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
layout(constant_id = 2) const uint TILE_TOKENS = 128;
layout(constant_id = 3) const uint SUBGROUPS_ALONG_ROWS = 4;
layout(constant_id = 4) const uint SUBGROUPS_ALONG_TOKENS = 2;
layout(constant_id = 5) const uint ADDS = 0;
layout(constant_id = 6) const uint MATRIX_M = 16; // rows, tokens and columns that one instruction multiplies
layout(constant_id = 7) const uint MATRIX_N = 16;
layout(constant_id = 8) const uint MATRIX_K = 16;
layout(constant_id = 9) const uint TILE_ROWS = 128;
layout(constant_id = 10) const uint STEPS_AHEAD = 1; // steps of the loop whose loads are under way together
layout(constant_id = 11) const uint HAS_BIAS = 0; // one number for each column of y
layout(constant_id = 12) const uint FACTOR = 0x3f800000; // 1.0
layout(constant_id = 13) const uint N_PARTS = 1;
layout(constant_id = 14) const uint IN_HALVES = 0; // whether x has float16
layout(push_constant) uniform Push {
  uint n_weight_rows;
  uint y_offset; // where these rows begin in a row of y
  uint y_stride;
};
layout(std430, binding = 0) readonly buffer Quants { uvec4 quants[]; };
layout(std430, binding = 1) readonly buffer Scales { uint scales[]; };
layout(std430, binding = 2) readonly buffer X { vec4 x[]; };
layout(std430, binding = 2) readonly buffer XInHalves { uvec4 x_halves[]; }; // the same
layout(std430, binding = 3) readonly buffer Add { float add[]; };
layout(std430, binding = 4) writeonly buffer Y { float y[]; };
#define STEP_BINDING 5
layout(std430, binding = 6) readonly buffer Bias { float bias[]; };
#include "lib/step.glsl"
#define NEEDS_HALVES
#include "lib/pack.glsl"
#include "formats/format.glsl"
#include "lib/halves.glsl"

uint token0, part;
#define FIRST_OF_X(i, token) ((token0 + (token)) * (COLUMNS / 4) + part * PART_BLOCKS * 8)
#include "lib/matmul_tile.glsl"
const bool SCALES_SUMS = FACTOR != 0x3f800000; // what is added then comes behind the loop

void main() {
  uint token_tiles = gl_NumWorkGroups.y / N_PARTS;
  part = gl_WorkGroupID.y / token_tiles;
  token0 = gl_WorkGroupID.y % token_tiles * TILE_TOKENS;
  uint row0 = gl_WorkGroupID.x * TILE_ROWS;
  if (token0 >= n_rows) return;
  prepare_weights();
  uint self = gl_LocalInvocationIndex;
  uint w_block = min(row0 + self / TILE_BLOCKS, n_weight_rows - 1) * BLOCKS + self % TILE_BLOCKS;
  w_block += part * PART_BLOCKS;
  uint part0 = part * token_tiles * TILE_TOKENS; // of y's rows
  uint row_step0 = first_row_step(), token_step0 = first_token_step();
  bool multiplies = subgroup_multiplies();
  [[unroll]] for (uint r = 0; r < ROW_STEPS; r++) {
    [[unroll]] for (uint t = 0; t < TOKEN_STEPS; t++) {
      uint row = row0 + (row_step0 + r) * MATRIX_M, token = token0 + (token_step0 + t) * MATRIX_N;
      sums[r * TOKEN_STEPS + t] = Sums(0.0);
      if (ADDS != 0 && !SCALES_SUMS && multiplies && row < n_weight_rows) {
        coopMatLoad(sums[r * TOKEN_STEPS + t], add, token * y_stride + y_offset + row, y_stride,
                    gl_CooperativeMatrixLayoutColumnMajor);
      }
      if (HAS_BIAS != 0 && multiplies && row < n_weight_rows) {
        Sums same; // for all tokens: the columns of the matrix lie in one place
        coopMatLoad(same, bias, y_offset + row, 0, gl_CooperativeMatrixLayoutColumnMajor);
        sums[r * TOKEN_STEPS + t] += same;
      }
    }
  }

  add_products(w_block, multiplies);
  if (!multiplies) return;
  [[unroll]] for (uint r = 0; r < ROW_STEPS; r++) {
    [[unroll]] for (uint t = 0; t < TOKEN_STEPS; t++) {
      uint row = row0 + (row_step0 + r) * MATRIX_M, token = token0 + (token_step0 + t) * MATRIX_N;
      if (row < n_weight_rows) {
        if (SCALES_SUMS) sums[r * TOKEN_STEPS + t] *= uintBitsToFloat(FACTOR);
        if (SCALES_SUMS && ADDS != 0) {
          Sums added;
          coopMatLoad(added, add, token * y_stride + y_offset + row, y_stride, gl_CooperativeMatrixLayoutColumnMajor);
          sums[r * TOKEN_STEPS + t] += added;
        }
        coopMatStore(sums[r * TOKEN_STEPS + t], y, (part0 + token) * y_stride + y_offset + row, y_stride,
                     gl_CooperativeMatrixLayoutColumnMajor);
      }
    }
  }
}
