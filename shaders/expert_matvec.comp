// expert_matvec: y = scale * (W x) + bias of the expert that each slot of a row takes, for tiles of an expert's slots
// bindings: quants scales x x_scales tiles entries routes y step bias expert_scales
// constants: local_size columns rows_per_subgroup slots_per_workgroup n_experts expert_rows first_tensor n_slots x_columns slot_columns listed tile_size has_bias has_scales is_weighed
// push: n_weight_rows y_offset y_stride
// dispatch: x = rows / (subgroups of a workgroup * rows_per_subgroup);
//   y = tiles * (tile_size / slots_per_workgroup); without a list, experts * (tokens / slots_per_workgroup)
// formats: all
// subgroup: arithmetic
// requires: full subgroups, or the _plain variant; integer dot product for quantized weights, or the _soft variant
// numerics: those of matvec
// source: own
//
// x_columns: of a row of x, of which slot k reads those from k * slot_columns on. y has n_slots parts in a row.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#ifndef SOFT_DOT
#extension GL_EXT_integer_dot_product : enable
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 2048;
layout(constant_id = 2) const uint ROWS = 2;
layout(constant_id = 3) const uint SPAN = 1;
layout(constant_id = 4) const uint N_EXPERTS = 128;
layout(constant_id = 5) const uint EXPERT_ROWS = 768;
layout(constant_id = 6) const uint FIRST_TENSOR = 0;
layout(constant_id = 7) const uint N_SLOTS = 8;
layout(constant_id = 8) const uint X_COLUMNS = 2048;
layout(constant_id = 9) const uint SLOT_COLUMNS = 0;
layout(constant_id = 10) const uint LISTED = 1;
layout(constant_id = 11) const uint TILE_SIZE = 8;
layout(constant_id = 12) const uint HAS_BIAS = 0;
layout(constant_id = 13) const uint HAS_SCALES = 0;
layout(constant_id = 14) const uint IS_WEIGHED = 0;
layout(push_constant) uniform Push {
  uint n_weight_rows; // of an expert
  uint y_offset;      // where these rows begin in a slot's part of y
  uint y_stride;      // of rows of y
};
layout(std430, binding = 0) readonly buffer Quants { uvec4 quants[]; };
layout(std430, binding = 1) readonly buffer Scales { uint scales[]; };
layout(std430, binding = 2) readonly buffer X { uvec4 x[]; };
layout(std430, binding = 3) readonly buffer XScales { vec2 x_scales[]; };
layout(std430, binding = 4) readonly buffer Tiles { uvec4 tiles[]; };
layout(std430, binding = 5) readonly buffer Entries { uint entries[]; };
layout(std430, binding = 6) readonly buffer Routes { float routes[]; };
layout(std430, binding = 7) writeonly buffer Y { float y[]; };
#define STEP_BINDING 8
layout(std430, binding = 9) readonly buffer Bias { float bias[]; };
layout(std430, binding = 10) readonly buffer ExpertScales { float expert_scales[]; };
const uint BLOCKS = X_COLUMNS / 32;
const uint ROW_BLOCKS = COLUMNS / 32;
#include "lib/step.glsl"
#include "lib/subgroups.glsl"
#include "lib/expert_rows.glsl"
#include "lib/expert_tile.glsl"
#include "formats/format.glsl"
#include "lib/products.glsl"

// A block of what a slot reads, whose columns may begin anywhere where they are plain numbers. Padding columns have weights
// of zero, which multiply what the same row has there, never another's: that may be no number.
Activations activations_of(uint slot, uint block) {
#ifdef HAS_NUMBERS
  uint first = slot / N_SLOTS * X_COLUMNS + slot % N_SLOTS * SLOT_COLUMNS;
  uint end = (slot / N_SLOTS + 1) * X_COLUMNS;
  Activations a;
  [[unroll]] for (uint i = 0; i < 8; i++) {
    a.values[i] = uintBitsToFloat(x[min(first / 4 + 8 * block + i, end / 4 - 1)]);
  }
  return a;
#else
  return load_activations(slot / N_SLOTS, slot % N_SLOTS * (SLOT_COLUMNS / 32) + block);
#endif
}

void main() {
  Tile tile = tile_of(gl_WorkGroupID.y);
  if (tile.n == 0) return;
  prepare_weights();
  uint row0 = (gl_WorkGroupID.x * N_SUBGROUPS + SUBGROUP) * ROWS;
#ifndef PLAIN // whose invocations stay together
  if (row0 >= n_weight_rows) return;
#endif
  uint slots[SPAN], first_blocks[ROWS];
  [[unroll]] for (uint t = 0; t < SPAN; t++) slots[t] = slot_of(tile, t);
  [[unroll]] for (uint r = 0; r < ROWS; r++) {
    first_blocks[r] = expert_row(tile.expert, min(row0 + r, n_weight_rows - 1)) * ROW_BLOCKS;
  }

  float sums[ROWS * SPAN];
  [[unroll]] for (uint i = 0; i < ROWS * SPAN; i++) sums[i] = 0.0;
  for (uint block = LANE; block < ROW_BLOCKS; block += SUBGROUP_SIZE) {
    Weights w[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; r++) w[r] = load_weights(first_blocks[r] + block);
    [[unroll]] for (uint t = 0; t < SPAN; t++) {
      Activations a = activations_of(slots[t], block);
      [[unroll]] for (uint r = 0; r < ROWS; r++) sums[r * SPAN + t] += product(w[r], first_blocks[r] + block, a);
    }
  }
  [[unroll]] for (uint r = 0; r < ROWS; r++) {
    [[unroll]] for (uint t = 0; t < SPAN; t++) {
      float sum = sum_of_subgroup(sums[r * SPAN + t]);
      if (LANE == 0 && row0 + r < n_weight_rows && t < tile.n) {
        uint row = slots[t] / N_SLOTS, k = slots[t] % N_SLOTS;
        if (HAS_SCALES != 0) sum *= expert_scales[scale_place(tile.expert, row0 + r)];
        if (HAS_BIAS != 0) sum += bias[bias_place(tile.expert, row0 + r)];
        if (IS_WEIGHED != 0) sum *= routes[row * (2 * N_SLOTS + 1) + N_SLOTS + k];
        y[row * y_stride + y_stride / N_SLOTS * k + y_offset + row0 + r] = sum;
      }
    }
  }
}
