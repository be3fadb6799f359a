// matmul_float: y = factor * (W x + bias) (+ add) for tiles of rows and tokens in float32: routers of prompts
// bindings: weights x add y step bias
// constants: local_size columns lane_rows lane_tokens adds has_bias factor
// push: n_weight_rows y_offset y_stride
// dispatch: x = rows / (4 * lane_rows), y = tokens / (8 * lane_tokens), rounded up
// requires: local_size 256; columns a multiple of 128; lane_rows 2 or 4, lane_tokens at most 4; x holds whole tiles of tokens
// numerics: float32; the order of the sums is the same whatever the tile
// source: own
//
// A tile of 128 columns at a time lies in shared memory. Teams of 32 invocations take 16 of its columns each, an invocation
// lane_rows rows and lane_tokens tokens; in the end the teams' sums are added.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 2048;
layout(constant_id = 2) const uint LANE_ROWS = 4;
layout(constant_id = 3) const uint LANE_TOKENS = 4;
layout(constant_id = 4) const uint ADDS = 0;
layout(constant_id = 5) const uint HAS_BIAS = 0; // one number for each column of y
layout(constant_id = 6) const uint FACTOR = 0x3f800000; // 1.0
layout(push_constant) uniform Push {
  uint n_weight_rows;
  uint y_offset; // where these rows begin in a row of y
  uint y_stride;
};
layout(std430, binding = 0) readonly buffer WeightRows { vec4 weights[]; };
layout(std430, binding = 1) readonly buffer X { vec4 x[]; };
layout(std430, binding = 2) readonly buffer Add { float add[]; };
layout(std430, binding = 3) writeonly buffer Y { float y[]; };
#define STEP_BINDING 4
layout(std430, binding = 5) readonly buffer Bias { float bias[]; };
#include "lib/step.glsl"

const uint SIZE = 256;
const uint TEAMS = SIZE / 32;
const uint FOURS = COLUMNS / 4;
const uint TILE_FOURS = 32;         // of the columns of a tile
const uint STRIDE = TILE_FOURS + 1; // one against bank conflicts
const uint TILE_ROWS = 4 * LANE_ROWS, TILE_TOKENS = 8 * LANE_TOKENS;
const uint LOADS = (TILE_ROWS + TILE_TOKENS) * TILE_FOURS / SIZE; // fours of a tile that an invocation brings
const uint OUTPUTS = TILE_ROWS * TILE_TOKENS;
const uint TILE = (TILE_ROWS + TILE_TOKENS) * STRIDE;

shared vec4 tile[TILE > TEAMS * OUTPUTS / 4 ? TILE : TEAMS * OUTPUTS / 4]; // rows, then tokens; in the end sums
vec4 next[LOADS];

void load(uint row0, uint token0, uint first) {
  [[unroll]] for (uint i = 0; i < LOADS; i++) {
    uint at = gl_LocalInvocationIndex + i * SIZE, line = at / TILE_FOURS, four = first + at % TILE_FOURS;
    next[i] = line < TILE_ROWS ? weights[min(row0 + line, n_weight_rows - 1) * FOURS + four]
                               : x[(token0 + line - TILE_ROWS) * FOURS + four];
  }
}

void main() {
  uint row0 = gl_WorkGroupID.x * TILE_ROWS, token0 = gl_WorkGroupID.y * TILE_TOKENS;
  if (token0 >= n_rows) return;
  uint self = gl_LocalInvocationIndex, team = self / 32, lane = self % 32;
  uint first_row = lane / 8, first_token = TILE_ROWS + lane % 8; // of the lane: every fourth row, every eighth token
  float sums[LANE_ROWS * LANE_TOKENS];
  [[unroll]] for (uint i = 0; i < LANE_ROWS * LANE_TOKENS; i++) sums[i] = 0.0;
  load(row0, token0, 0);
  for (uint first = 0; first < FOURS; first += TILE_FOURS) {
    barrier(); // the last tile has been read
    [[unroll]] for (uint i = 0; i < LOADS; i++) {
      uint at = self + i * SIZE;
      tile[at / TILE_FOURS * STRIDE + at % TILE_FOURS] = next[i];
    }
    barrier();
    if (first + TILE_FOURS < FOURS) load(row0, token0, first + TILE_FOURS);
    [[unroll]] for (uint i = 0; i < TILE_FOURS / TEAMS; i++) {
      uint four = team * (TILE_FOURS / TEAMS) + i;
      vec4 of_tokens[LANE_TOKENS];
      [[unroll]] for (uint t = 0; t < LANE_TOKENS; t++) of_tokens[t] = tile[(first_token + 8 * t) * STRIDE + four];
      [[unroll]] for (uint r = 0; r < LANE_ROWS; r++) {
        vec4 of_row = tile[(first_row + 4 * r) * STRIDE + four];
        [[unroll]] for (uint t = 0; t < LANE_TOKENS; t++) {
          precise float sum = sums[r * LANE_TOKENS + t];
          [[unroll]] for (uint k = 0; k < 4; k++) sum = fma(of_row[k], of_tokens[t][k], sum);
          sums[r * LANE_TOKENS + t] = sum;
        }
      }
    }
  }
  barrier();
  [[unroll]] for (uint i = 0; i < LANE_ROWS * LANE_TOKENS; i++) {
    uint row = first_row + 4 * (i / LANE_TOKENS), token = first_token - TILE_ROWS + 8 * (i % LANE_TOKENS);
    uint at = team * OUTPUTS + token * TILE_ROWS + row;
    tile[at / 4][at % 4] = sums[i];
  }
  barrier();
  for (uint i = self; i < OUTPUTS; i += SIZE) {
    uint row = row0 + i % TILE_ROWS, token = token0 + i / TILE_ROWS;
    if (row >= n_weight_rows || token >= n_rows) continue;
    float sum = 0.0;
    [[unroll]] for (uint t = 0; t < TEAMS; t++) sum += tile[(t * OUTPUTS + i) / 4][i % 4];
    uint column = y_offset + row;
    if (HAS_BIAS != 0) sum += bias[column];
    if (FACTOR != 0x3f800000) sum *= uintBitsToFloat(FACTOR);
    y[token * y_stride + column] = ADDS != 0 ? sum + add[token * y_stride + column] : sum;
  }
}
