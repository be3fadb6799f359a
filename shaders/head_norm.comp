// head_norm: queries, keys and perhaps values, group of columns by group, normed * weight, in place
// bindings: qkv weight step
// constants: local_size columns n_q_groups q_columns n_k_groups k_columns eps form has_weight is_weight_of_group q_stride n_v_groups are_values_keys
// push:
// dispatch: x = n_q_groups + n_k_groups + n_v_groups, y = tokens
// subgroup: arithmetic
// requires: full subgroups, or the _plain variant; columns of groups a multiple of 4
// numerics: float32, as in norm; eps is sent as the bits of a float32
// source: Dehghani et al. 2023, arXiv 2302.05442
//
// qkv has rows of `columns` columns: n_q_groups of q_columns each, q_stride apart, n_k_groups of k_columns each, and
// others. A group is a head or all heads of a row. weight: those of queries, then those of keys; each group's own, or one
// for all groups. n_v_groups: of values, as large as those of keys, which are divided by their root mean squares.
// are_values_keys: values become the keys divided by their root mean squares; form is then 0.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 6144;
layout(constant_id = 2) const uint N_Q_GROUPS = 32;
layout(constant_id = 3) const uint Q_COLUMNS = 128;
layout(constant_id = 4) const uint N_K_GROUPS = 8;
layout(constant_id = 5) const uint K_COLUMNS = 128;
layout(constant_id = 6) const uint EPS = 0x3727c5ac; // 1e-5
layout(constant_id = 7) const uint FORM = 0;         // 0: by the root mean square; 1: a layer norm; 2: none
layout(constant_id = 8) const uint HAS_WEIGHT = 1;
layout(constant_id = 9) const uint IS_WEIGHT_OF_GROUP = 0;
layout(constant_id = 10) const uint Q_STRIDE = 128;
layout(constant_id = 11) const uint N_V_GROUPS = 0;
layout(constant_id = 12) const uint ARE_VALUES_KEYS = 0;
layout(std430, binding = 0) buffer Qkv { vec4 qkv[]; };
layout(std430, binding = 1) readonly buffer Weight { vec4 weight[]; };
#define STEP_BINDING 2
#include "lib/step.glsl"
#include "lib/subgroups.glsl"
#include "lib/workgroup_sum.glsl"

void main() {
  uint row = gl_WorkGroupID.y, group = gl_WorkGroupID.x;
  if (row >= n_rows) return;
  bool is_query = group < N_Q_GROUPS;
  if (!is_query) group -= N_Q_GROUPS; // values follow the keys
  bool is_value = N_V_GROUPS != 0 && !is_query && group >= N_K_GROUPS;
  uint form = is_value ? 0 : FORM;
  if (form == 2) return;
  uint columns = is_query ? Q_COLUMNS : K_COLUMNS, fours = columns / 4;
  uint from = (row * COLUMNS + (is_query ? group * Q_STRIDE : N_Q_GROUPS * Q_STRIDE + group * columns)) / 4;
  uint first_weight = is_query ? 0 : (IS_WEIGHT_OF_GROUP != 0 ? N_Q_GROUPS : 1) * Q_COLUMNS / 4;
  if (IS_WEIGHT_OF_GROUP != 0) first_weight += group * fours;
  uint self = SUBGROUP * SUBGROUP_SIZE + LANE;
  float mean = 0.0, squares = 0.0;
  if (form == 1) {
    float sum = 0.0;
    for (uint i = self; i < fours; i += gl_WorkGroupSize.x) sum += dot(qkv[from + i], vec4(1.0));
    mean = sum_of_workgroup(sum) / float(columns);
    barrier();
  }
  for (uint i = self; i < fours; i += gl_WorkGroupSize.x) {
    vec4 v = qkv[from + i] - mean;
    squares += dot(v, v);
  }
  float factor = inversesqrt(sum_of_workgroup(squares) / float(columns) + uintBitsToFloat(EPS));
  for (uint i = self; i < fours; i += gl_WorkGroupSize.x) {
    vec4 v = (qkv[from + i] - mean) * factor;
    if (ARE_VALUES_KEYS != 0 && !is_query) qkv[from + N_K_GROUPS * fours + i] = v;
    qkv[from + i] = HAS_WEIGHT != 0 && !is_value ? v * weight[first_weight + i] : v;
  }
}
