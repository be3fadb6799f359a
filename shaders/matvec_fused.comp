// matvec_fused: y = factor * activation(W f(source) + bias) (+ add) for one token, f being a norm or nothing
// bindings: quants scales source norm_weight add y chain failure bias norm_bias routes expert_scales shared_result
// constants: local_size columns first_column n_columns rows_per_subgroup unroll norms gates adds eps most_polls steps_touched doubles has_bias factor activation norm_has_bias n_slots n_experts expert_rows slot_rows sums_slots has_scales is_weighed has_shared
// push: n_y_rows y_offset n_before link n_awaited
// dispatch: x = as many workgroups as run at once, or fewer: each takes rows until none are left
// formats: quantized
// subgroup: arithmetic shuffle
// requires: full subgroups of 8 or more and of no fewer lanes than rows_per_subgroup;
//   first_column a multiple of 256; 2.25 bytes of shared memory a column that it reads; integer dot product, or the
//   _soft variant
// numerics: those of norm, matvec and activate; every workgroup quantizes the activations for itself
// source: own
//
// norms = 1: by the root mean square; 2: a layer norm.
// gates = 1: W's rows are n_y_rows of the gate, then n_y_rows of up, and y = activation(gate) * up.
// n_columns < columns: the product with some columns of W only; add, which may be y, brings that of the others.
// n_slots > 0: W holds the matrices of all experts, and the row takes n_slots of them. With sums_slots, y is the sum of their
// results, each of n_columns / n_slots columns of the source, times its weight (is_weighed), and of the result of the shared
// expert (has_shared). Otherwise y has the rows of each, which read the same source.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#ifdef MEMORY_MODEL
#pragma use_vulkan_memory_model
#extension GL_KHR_memory_scope_semantics : require
#endif
#ifndef SOFT_DOT
#extension GL_EXT_integer_dot_product : enable
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint FIRST_COLUMN = 0;
layout(constant_id = 3) const uint N_COLUMNS = 4096;
layout(constant_id = 4) const uint ROWS = 1; // of y
layout(constant_id = 5) const uint UNROLL = 2; // blocks of a row whose loads are under way together
layout(constant_id = 6) const uint NORMS = 0;
layout(constant_id = 7) const uint GATES = 0;
layout(constant_id = 8) const uint ADDS = 0;
layout(constant_id = 9) const uint EPS = 0x3727c5ac; // 1e-5
layout(constant_id = 10) const uint MOST_POLLS = 0; // of a wait; 0: there is none
layout(constant_id = 11) const uint STEPS_TOUCHED = 0; // of the loop, whose weights are fetched into the cache meanwhile
layout(constant_id = 12) const uint DOUBLES = 0; // whether all loads of a step begin before the products of the last
layout(constant_id = 13) const uint HAS_BIAS = 0; // one number for each row of W that is here or in other dispatches
layout(constant_id = 14) const uint FACTOR = 0x3f800000; // 1.0
layout(constant_id = 15) const uint ACTIVATION = 0; // 0: none
layout(constant_id = 16) const uint NORM_HAS_BIAS = 0;
layout(constant_id = 17) const uint N_SLOTS = 0; // experts of the row; 0: W is one matrix
layout(constant_id = 18) const uint N_EXPERTS = 1;
layout(constant_id = 19) const uint EXPERT_ROWS = 1; // of an expert in a tensor
layout(constant_id = 20) const uint SLOT_ROWS = 1;   // of y
layout(constant_id = 21) const uint SUMS_SLOTS = 0;
layout(constant_id = 22) const uint HAS_SCALES = 0; // one number for each expert and tensor
layout(constant_id = 23) const uint IS_WEIGHED = 0;
layout(constant_id = 24) const uint HAS_SHARED = 0;
layout(push_constant) uniform Push {
  uint n_y_rows;
  uint y_offset;
  uint n_before; // workgroups of the link before the last, which wrote the source; 0: await the last for it
  uint link;
  uint n_awaited;
};
layout(std430, binding = 0) readonly buffer Quants { uvec4 quants[]; };
layout(std430, binding = 1) readonly buffer Scales { uint scales[]; };
layout(std430, binding = 2) coherent readonly buffer Source { vec4 source[]; };
layout(std430, binding = 3) readonly buffer NormWeight { vec4 norm_weight[]; };
layout(std430, binding = 4) coherent readonly buffer Add { float add[]; };
layout(std430, binding = 5) coherent writeonly buffer Y { float y[]; };
#define CHAIN_BINDING 6
#define FAILURE_BINDING 7
layout(std430, binding = 8) readonly buffer Bias { float bias[]; };
layout(std430, binding = 9) readonly buffer NormBias { vec4 norm_bias[]; };
layout(std430, binding = 10) coherent readonly buffer Routes { uint routes[]; };
layout(std430, binding = 11) readonly buffer ExpertScales { float expert_scales[]; };
layout(std430, binding = 12) coherent readonly buffer SharedResult { float shared_result[]; };
const uint ROW_BLOCKS = COLUMNS / 32; // of the matrix
const uint SLOT_ROOM = N_SLOTS > 0 ? N_SLOTS : 1;
const uint FIRST_TENSOR = 0;
const uint BLOCKS = N_COLUMNS / 32;   // that are read
const uint FOURS = N_COLUMNS / 4;
const uint OWN = (FOURS + LOCAL_SIZE - 1) / LOCAL_SIZE; // fours that an invocation quantizes
const uint KEPT = OWN < 8 ? OWN : 8;                    // of them, those that stay in registers
const uint WEIGHT_ROWS = ROWS * (1 + GATES);            // a subgroup's at a time
shared uvec4 x[BLOCKS * 4];
shared vec2 x_scales[BLOCKS];
shared float partial[128];
shared uint expert_of[SLOT_ROOM];
shared float weight_of[SLOT_ROOM];
#define Q16_WORD(word) x[(word) / 4][(word) % 4]
#define Q16_SCALES(block) x_scales[block]
#include "lib/chain.glsl"
#include "lib/q16.glsl"
#include "formats/format.glsl"
#include "lib/products.glsl"
#include "lib/activations.glsl"
#include "lib/expert_rows.glsl"

uint self;
vec4 kept[KEPT];

// the experts of the row, and the weights of their results
void load_slots() {
  if (self < N_SLOTS) {
    expert_of[self] = routes[self];
    weight_of[self] = IS_WEIGHED != 0 ? uintBitsToFloat(routes[N_SLOTS + self]) : 1.0;
  }
  barrier();
}

// what the source is multiplied by, so that the products add up to the sum of the slots
float factor_of_source(uint slot) {
  return HAS_SCALES != 0 ? weight_of[slot] * expert_scales[expert_of[slot]] : weight_of[slot];
}

vec4 four_of_source(uint i) {
  vec4 v = source[FIRST_COLUMN / 4 + i];
  return SUMS_SLOTS != 0 ? v * factor_of_source(i / (ROW_BLOCKS * 8)) : v;
}

void quantize(uint i, vec4 v) { store_q16(0, BLOCKS, i / 8, NORMS != 0 ? v * norm_weight[i] : v); }

float sum_of_workgroup(float v) {
  float sum = subgroupAdd(v);
  if (gl_SubgroupInvocationID == 0) partial[gl_SubgroupID] = sum;
  barrier();
  sum = 0.0;
  for (uint i = 0; i < LOCAL_SIZE / gl_SubgroupSize; i++) sum += partial[i];
  barrier(); // the sums have been read
  return sum;
}

// the i-th four of a layer norm whose x is v
vec4 layer_normed(uint i, vec4 v, float mean, float factor) {
  v = (v - mean) * factor * norm_weight[i];
  return NORM_HAS_BIAS != 0 ? v + norm_bias[i] : v;
}

// Of a layer norm's numbers no factor is left for the products: its bias comes behind it.
void load_layer_norm() {
  [[unroll]] for (uint k = 0; k < KEPT; k++) kept[k] = four_of_source(min(self + k * LOCAL_SIZE, FOURS - 1));
  float sum = 0.0, squares = 0.0;
  [[unroll]] for (uint k = 0; k < KEPT; k++) {
    if (self + k * LOCAL_SIZE < FOURS) sum += dot(kept[k], vec4(1.0));
  }
  for (uint i = self + KEPT * LOCAL_SIZE; KEPT < OWN && i < FOURS; i += LOCAL_SIZE) {
    sum += dot(four_of_source(i), vec4(1.0));
  }
  float mean = sum_of_workgroup(sum) / float(COLUMNS);
  [[unroll]] for (uint k = 0; k < KEPT; k++) {
    if (self + k * LOCAL_SIZE < FOURS) squares += dot(kept[k] - mean, kept[k] - mean);
  }
  for (uint i = self + KEPT * LOCAL_SIZE; KEPT < OWN && i < FOURS; i += LOCAL_SIZE) {
    vec4 v = four_of_source(i) - mean;
    squares += dot(v, v);
  }
  float factor = inversesqrt(sum_of_workgroup(squares) / float(COLUMNS) + uintBitsToFloat(EPS));
  [[unroll]] for (uint k = 0; k < KEPT; k++) {
    uint i = self + k * LOCAL_SIZE;
    if ((k + 1) * LOCAL_SIZE <= FOURS || i < FOURS) store_q16(0, BLOCKS, i / 8, layer_normed(i, kept[k], mean, factor));
  }
  for (uint i = self + KEPT * LOCAL_SIZE; KEPT < OWN && i < FOURS; i += LOCAL_SIZE) {
    store_q16(0, BLOCKS, i / 8, layer_normed(i, four_of_source(i), mean, factor));
  }
  barrier();
}

// the activations, as q16 blocks in x and x_scales; those of a norm of root mean squares still to be multiplied by
// norm_factor
void load_source() {
  if (NORMS == 2) {
    load_layer_norm();
    return;
  }
  [[unroll]] for (uint k = 0; k < KEPT; k++) kept[k] = four_of_source(min(self + k * LOCAL_SIZE, FOURS - 1));
  float squares = 0.0;
  [[unroll]] for (uint k = 0; k < KEPT; k++) {
    uint i = self + k * LOCAL_SIZE;
    if ((k + 1) * LOCAL_SIZE <= FOURS || i < FOURS) {
      squares += dot(kept[k], kept[k]);
      quantize(i, kept[k]);
    }
  }
  for (uint i = self + KEPT * LOCAL_SIZE; KEPT < OWN && i < FOURS; i += LOCAL_SIZE) {
    vec4 v = four_of_source(i);
    squares += dot(v, v);
    quantize(i, v);
  }
  if (NORMS != 0) {
    float sum = subgroupAdd(squares);
    if (gl_SubgroupInvocationID == 0) partial[gl_SubgroupID] = sum;
  }
  barrier();
}

float norm_factor() {
  if (NORMS != 1) return 1.0;
  float sum = 0.0;
  for (uint i = 0; i < LOCAL_SIZE / gl_SubgroupSize; i++) sum += partial[i];
  return inversesqrt(sum / float(COLUMNS) + uintBitsToFloat(EPS));
}

// index of a block of W: of the r-th weight row of y's rows from row0 on
uint block_index(uint row0, uint r, uint block) {
  uint y_row = min(row0 + r % ROWS, n_y_rows - 1);
  block = min(block, BLOCKS - 1);
  if (SUMS_SLOTS != 0) return expert_row(expert_of[block / ROW_BLOCKS], y_row) * ROW_BLOCKS + block % ROW_BLOCKS;
  uint row = N_SLOTS != 0 ? expert_row(expert_of[y_row / SLOT_ROWS], y_row % SLOT_ROWS + (r < ROWS ? 0 : SLOT_ROWS))
                          : y_row + (r < ROWS ? 0 : n_y_rows);
  return row * ROW_BLOCKS + FIRST_COLUMN / 32 + block;
}

#define STEP (UNROLL * gl_SubgroupSize) // blocks of a row that a subgroup takes together

Weights w[WEIGHT_ROWS * UNROLL]; // what comes next of a subgroup's weights: UNROLL blocks a lane and row

void load_block(uint row0, uint block, uint u) {
  [[unroll]] for (uint r = 0; r < WEIGHT_ROWS; r++) {
    w[u * WEIGHT_ROWS + r] = load_weights(block_index(row0, r, block + u * gl_SubgroupSize));
  }
}

void load_step(uint row0, uint block) {
  [[unroll]] for (uint u = 0; u < UNROLL; u++) load_block(row0, block, u);
}

// Begins to fetch what the next steps of the loop will load, and returns something that depends on all of it, so that
// it is not left out.
uint touch_steps(uint row0, uint block, uint stride) {
  uint touched = 0;
  [[unroll]] for (uint s = 0; s < STEPS_TOUCHED; s++) {
    block += STEP;
    if (block >= BLOCKS) {
      block = gl_SubgroupInvocationID;
      row0 += stride;
    }
    if (row0 >= n_y_rows) break;
    [[unroll]] for (uint u = 0; u < UNROLL; u++) {
      [[unroll]] for (uint r = 0; r < WEIGHT_ROWS; r++) {
        touched |= first_words(load_weights(block_index(row0, r, block + u * gl_SubgroupSize)));
      }
    }
  }
  return touched;
}

float sums[WEIGHT_ROWS]; // of a lane's blocks

// a block's place among those that share a word of scales, which mostly lie in neighbouring lanes
uint place_of(uint row0, uint r, uint block) {
  return ROW_BLOCKS % SHARED_BLOCKS == 0 ? gl_SubgroupInvocationID : block_index(row0, r, block);
}

// With a second copy of the step, so that all loads of the next one are under way while it is multiplied. NVIDIA's
// compiler needs the loop as it is here: each lane runs as often as it has blocks, and only rows that there are get loaded.
void multiply_doubled(uint row0, uint stride) {
  for (uint block = gl_SubgroupInvocationID; block < BLOCKS; block += STEP) {
    Weights now[WEIGHT_ROWS * UNROLL];
    [[unroll]] for (uint i = 0; i < WEIGHT_ROWS * UNROLL; i++) now[i] = w[i];
    if (block + STEP < BLOCKS) load_step(row0, block + STEP);
    else if (row0 + stride < n_y_rows) load_step(row0 + stride, gl_SubgroupInvocationID);
    [[unroll]] for (uint u = 0; u < UNROLL; u++) {
      uint b = block + u * gl_SubgroupSize;
      if (b >= BLOCKS) break;
      Activations a = load_activations(0, b);
      [[unroll]] for (uint r = 0; r < WEIGHT_ROWS; r++) {
        sums[r] += product(now[u * WEIGHT_ROWS + r], place_of(row0, r, b), a);
      }
    }
  }
}

// In place: each block is loaded as soon as the one before it has been multiplied. With a second copy Mesa would wait for
// the loads to move them, in a third more registers. All lanes step together and no branch guards the loads, since it
// would wait for them too: beyond the last row all lanes load one block.
void multiply_in_place(uint row0, uint stride) {
  for (uint base = 0; base < BLOCKS; base += STEP) {
    bool ends_row = base + STEP >= BLOCKS;
    uint next_row = ends_row ? row0 + stride : row0;
    uint next = next_row < n_y_rows ? (ends_row ? 0 : base + STEP) + gl_SubgroupInvocationID : 0;
    [[unroll]] for (uint u = 0; u < UNROLL; u++) {
      uint b = base + u * gl_SubgroupSize + gl_SubgroupInvocationID;
      if (base + (u + 1) * gl_SubgroupSize <= BLOCKS || b < BLOCKS) {
        Activations a = load_activations(0, b);
        [[unroll]] for (uint r = 0; r < WEIGHT_ROWS; r++) {
          sums[r] += product(w[u * WEIGHT_ROWS + r], place_of(row0, r, b), a);
        }
      }
      load_block(next_row, next, u);
    }
  }
}

void main() {
  self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
  uint row0 = (gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID) * ROWS;
  uint stride = gl_NumWorkGroups.x * gl_NumSubgroups * ROWS;
  uint lane = gl_SubgroupInvocationID;
  if (N_SLOTS == 0) load_step(row0, lane); // on its way while the activations come
  if (N_SLOTS == 0 && STEPS_TOUCHED != 0 && touch_steps(row0, lane, stride) == 1) partial[127] = 0.0; // so that it is not left out
  prepare_weights();
  bool loads_early = N_SLOTS != 0 && SUMS_SLOTS == 0 && MOST_POLLS != 0 && n_before != 0;
  if (loads_early) await_workgroups(link - 2, n_before);
  else await_link();
  if (N_SLOTS != 0 && !loads_early) {
    load_slots();
    load_step(row0, lane);
  }
  load_source();
  if (loads_early) { // the last link has chosen the experts
    await_link();
    load_slots();
    load_step(row0, lane);
  }
  float factor = norm_factor();
  for (; row0 < n_y_rows; row0 += stride) {
    uint index = y_offset + min(row0 + min(lane, ROWS - 1), n_y_rows - 1); // lane r has the r-th row of y
    float added = ADDS != 0 ? add[index] : 0.0;
    float bias_of_v = 0.0, bias_of_up = 0.0, factor_of_v = 1.0, factor_of_up = 1.0, weight = 1.0;
    if (N_SLOTS == 0 && HAS_BIAS != 0) {
      bias_of_v = bias[index];
      if (GATES != 0) bias_of_up = bias[index + n_y_rows];
    }
    if (N_SLOTS != 0 && SUMS_SLOTS == 0) {
      uint slot = (index - y_offset) / SLOT_ROWS, row = (index - y_offset) % SLOT_ROWS;
      uint expert = expert_of[slot];
      if (HAS_BIAS != 0) bias_of_v = bias[bias_place(expert, row)];
      if (HAS_BIAS != 0 && GATES != 0) bias_of_up = bias[bias_place(expert, row + SLOT_ROWS)];
      if (HAS_SCALES != 0) factor_of_v = expert_scales[scale_place(expert, row)];
      if (HAS_SCALES != 0 && GATES != 0) factor_of_up = expert_scales[scale_place(expert, row + SLOT_ROWS)];
      weight = weight_of[slot];
    }
    if (SUMS_SLOTS != 0 && HAS_BIAS != 0) {
      [[unroll]] for (uint k = 0; k < N_SLOTS; k++) {
        bias_of_v += weight_of[k] * bias[bias_place(expert_of[k], index - y_offset)];
      }
    }
    if (HAS_SHARED != 0) bias_of_v += uintBitsToFloat(routes[2 * N_SLOTS]) * shared_result[index];
    [[unroll]] for (uint r = 0; r < WEIGHT_ROWS; r++) sums[r] = 0.0;
    if (DOUBLES != 0) multiply_doubled(row0, stride);
    else multiply_in_place(row0, stride);
    [[unroll]] for (uint r = 0; r < WEIGHT_ROWS; r++) sums[r] = factor * subgroupAdd(sums[r]);
    float v = sums[0], up = sums[WEIGHT_ROWS - ROWS];
    [[unroll]] for (uint r = 1; r < ROWS; r++) {
      v = lane == r ? sums[r] : v;
      up = lane == r ? sums[r + WEIGHT_ROWS - ROWS] : up;
    }
    if (HAS_SCALES != 0 && SUMS_SLOTS == 0) {
      v *= factor_of_v;
      up *= factor_of_up;
    }
    if (HAS_BIAS != 0 || HAS_SHARED != 0) v += bias_of_v;
    if (HAS_BIAS != 0 && GATES != 0) up += bias_of_up;
    if (IS_WEIGHED != 0 && SUMS_SLOTS == 0) {
      v *= weight;
      up *= weight;
    }
    if (ACTIVATION != 0) v = ACTIVATED(v);
    if (GATES != 0) v *= UP_FACTOR(up);
    if (FACTOR != 0x3f800000) v *= uintBitsToFloat(FACTOR);
    if (lane < ROWS && row0 + lane < n_y_rows) y[index] = v + added;
  }
  end_link();
}
