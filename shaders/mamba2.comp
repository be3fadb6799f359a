// mamba2: the selective state space, token by token; S <- exp(t a) S + t x outer B, y = S C + d x, t = softplus(dt + bias)
// bindings: xbc gates dt_bias a d states y step
// constants: local_size lanes n_heads head_dim d_state n_groups gates_columns dt_column slot_words
// push: first_word
// dispatch: x = n_heads * head_dim * lanes / local_size, y = parts of the step; a team of `lanes` invocations keeps d_state
//   numbers of a column
// subgroup: shuffle
// requires: full subgroups, or the _plain variant with one lane; d_state a multiple of 4 * lanes
// numerics: float32
// source: Dao and Gu 2024, arXiv 2405.21060
//
// xbc (tokens, x | B | C): heads h share the B and C of group h / (n_heads / n_groups). dt: a column of `gates` for each
// head, from dt_column on. A state is (n_heads, head_dim, d_state).
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint LANES = 1;
layout(constant_id = 2) const uint N_HEADS = 48;
layout(constant_id = 3) const uint HEAD_DIM = 64;
layout(constant_id = 4) const uint SIZE = 128;
layout(constant_id = 5) const uint N_GROUPS = 1;
layout(constant_id = 6) const uint GATES_COLUMNS = 6448;
layout(constant_id = 7) const uint DT_COLUMN = 6400;
layout(constant_id = 8) const uint SLOT_WORDS = 1024;
layout(push_constant) uniform Push { uint first_word; };
layout(std430, binding = 0) readonly buffer Xbc { float xbc[]; };
layout(std430, binding = 1) readonly buffer Gates { float gates[]; };
layout(std430, binding = 2) readonly buffer DtBias { float dt_bias[]; };
layout(std430, binding = 3) readonly buffer A { float a[]; };
layout(std430, binding = 4) readonly buffer D { float d[]; };
layout(std430, binding = 5) buffer States { vec4 states[]; };
layout(std430, binding = 6) writeonly buffer Y { float y[]; };
#define STEP_BINDING 7
#include "lib/step.glsl"
#include "lib/states.glsl"
#include "lib/teams.glsl"
#include "lib/softplus.glsl"

const uint D_INNER = N_HEADS * HEAD_DIM;
const uint ROW_COLUMNS = D_INNER + 2 * N_GROUPS * SIZE;

vec4 four_of_row(uint first) { return vec4(xbc[first], xbc[first + 1], xbc[first + 2], xbc[first + 3]); }

void main() {
  uint head = TEAM / HEAD_DIM;
  uint part = gl_WorkGroupID.y;
  if (part >= n_step_parts || head >= N_HEADS) return; // whole teams
  uint group = head / (N_HEADS / N_GROUPS);
  uint of_team = TEAM * SIZE / 4;
  vec4 s[OWN];
  uint before = state_before(part);
  [[unroll]] for (uint i = 0; i < OWN; i++) {
    s[i] = before == NO_SLOT ? vec4(0.0) : states[before / 4 + of_team + FOUR(i)];
  }
  float rate = a[head], bias = dt_bias[head], skip = d[head];
  uint first_row = step_parts[part].x, end_row = first_row + step_parts[part].y;
  for (uint row = first_row; row < end_row; row++) {
    uint first = row * ROW_COLUMNS, b_first = first + D_INNER + group * SIZE, c_first = b_first + N_GROUPS * SIZE;
    float x = xbc[first + TEAM];
    float t = softplus(gates[row * GATES_COLUMNS + DT_COLUMN + head] + bias);
    float decay = exp(t * rate), sum = 0.0;
    [[unroll]] for (uint i = 0; i < OWN; i++) {
      s[i] = decay * s[i] + (t * x) * four_of_row(b_first + 4 * FOUR(i));
      sum += dot(s[i], four_of_row(c_first + 4 * FOUR(i)));
    }
    sum = SUM_OF_TEAM(sum);
    if (TEAM_LANE == 0) y[row * D_INNER + TEAM] = sum + skip * x;
    uint behind = state_behind(row);
    if (behind != NO_SLOT) {
      [[unroll]] for (uint i = 0; i < OWN; i++) states[behind / 4 + of_team + FOUR(i)] = s[i];
    }
  }
}
