// gated_squares: y = the sum of squares of x * silu(z), and three zeros: one device's part of a norm's group
// bindings: x gates y step
// constants: local_size columns gates_columns
// push: first_column
// dispatch: x = 1, y = tokens
// subgroup: arithmetic
// requires: full subgroups of 8 or more, or the _plain variant
// numerics: float32
// source: Dao and Gu 2024, arXiv 2405.21060
//
// z begins at first_column of the rows of `gates`, which have gates_columns columns.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint GATES_COLUMNS = 8512;
layout(push_constant) uniform Push { uint first_column; };
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 1) readonly buffer Gates { float gates[]; };
layout(std430, binding = 2) writeonly buffer Y { vec4 y[]; };
#define STEP_BINDING 3
#include "lib/step.glsl"
#include "lib/subgroups.glsl"
#include "lib/workgroup_sum.glsl"

void main() {
  uint row = gl_WorkGroupID.y;
  if (row >= n_rows) return;
  float squares = 0.0;
  for (uint i = SUBGROUP * SUBGROUP_SIZE + LANE; i < COLUMNS; i += gl_WorkGroupSize.x) {
    float z = gates[row * GATES_COLUMNS + first_column + i];
    float v = x[row * COLUMNS + i] * (z / (1.0 + exp(-z)));
    squares += v * v;
  }
  float sum = sum_of_workgroup(squares);
  if (gl_LocalInvocationIndex == 0) y[row] = vec4(sum, 0.0, 0.0, 0.0);
}
