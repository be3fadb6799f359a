// delta_net: the gated delta rule, token by token; S <- g S, S <- S + k outer (sigmoid(beta) (v - S^T k)), y = S^T q
// bindings: qkv gates dt a states y step
// constants: local_size lanes n_k_heads n_v_heads head_dim is_grouped gates_columns beta_column alpha_column has_fused_gates eps slot_words
// push: first_word
// dispatch: x = n_v_heads * head_dim * lanes / local_size, y = parts of the step; a team of `lanes` invocations keeps a column
//   of a head's state
// subgroup: shuffle
// requires: full subgroups, or the _plain variant with one lane; head_dim a multiple of 4 * lanes
// numerics: float32; eps is sent as the bits of a float32
// source: Yang et al. 2024, arXiv 2412.06464
//
// qkv (tokens, queries | keys | values). q and k are divided by sqrt(sum of squares + eps), q also by sqrt(head_dim).
// g = exp(softplus(alpha + dt) * a). Value head h takes key head h % n_k_heads or, is_grouped, h / (n_v_heads / n_k_heads).
// beta and alpha: a column of `gates` for each value head or, has_fused_gates, from beta_column on for each key head its
// value heads' beta, then their alpha. A state is (n_v_heads, head_dim of values, head_dim of keys).
// S^T q is computed from S before the row, as g S^T q + (k q) u, so that a row takes one pass over S.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef PLAIN
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint LANES = 1;
layout(constant_id = 2) const uint N_K_HEADS = 16;
layout(constant_id = 3) const uint N_V_HEADS = 48;
layout(constant_id = 4) const uint SIZE = 128;
layout(constant_id = 5) const uint IS_GROUPED = 0;
layout(constant_id = 6) const uint GATES_COLUMNS = 16480;
layout(constant_id = 7) const uint BETA_COLUMN = 16384;
layout(constant_id = 8) const uint ALPHA_COLUMN = 16432;
layout(constant_id = 9) const uint HAS_FUSED_GATES = 0;
layout(constant_id = 10) const uint EPS = 0x358637bd; // 1e-6
layout(constant_id = 11) const uint SLOT_WORDS = 1024;
layout(push_constant) uniform Push { uint first_word; };
layout(std430, binding = 0) readonly buffer Qkv { vec4 qkv[]; };
layout(std430, binding = 1) readonly buffer Gates { float gates[]; };
layout(std430, binding = 2) readonly buffer Dt { float dt[]; };
layout(std430, binding = 3) readonly buffer A { float a[]; };
layout(std430, binding = 4) buffer States { vec4 states[]; };
layout(std430, binding = 5) writeonly buffer Y { float y[]; };
#define STEP_BINDING 6
#include "lib/step.glsl"
#include "lib/states.glsl"
#include "lib/teams.glsl"
#include "lib/delta_gates.glsl"

const uint ROW_FOURS = (2 * N_K_HEADS + N_V_HEADS) * SIZE / 4;

void main() {
  uint head = TEAM / SIZE, column = TEAM % SIZE;
  uint part = gl_WorkGroupID.y;
  if (part >= n_step_parts || head >= N_V_HEADS) return; // whole teams
  uint k_head = key_head(head);
  uint of_team = (head * SIZE + column) * SIZE / 4;
  vec4 s[OWN];
  uint before = state_before(part);
  [[unroll]] for (uint i = 0; i < OWN; i++) {
    s[i] = before == NO_SLOT ? vec4(0.0) : states[before / 4 + of_team + FOUR(i)];
  }
  float rate = a[head], bias = dt[head];
  uint first_row = step_parts[part].x, end_row = first_row + step_parts[part].y;
  for (uint row = first_row; row < end_row; row++) {
    uint q_four = row * ROW_FOURS + k_head * SIZE / 4, k_four = q_four + N_K_HEADS * SIZE / 4;
    uint v_column = 2 * N_K_HEADS * SIZE + head * SIZE + column;
    float v = qkv[row * ROW_FOURS + v_column / 4][v_column % 4];
    vec4 q[OWN], k[OWN];
    [[unroll]] for (uint i = 0; i < OWN; i++) {
      q[i] = qkv[q_four + FOUR(i)];
      k[i] = qkv[k_four + FOUR(i)];
    }
    float decay = decay_of(row, head, rate, bias), strength = strength_of(row, head);
    vec4 sums = vec4(0.0); // k k, q q, q k, k S
    float qs = 0.0;
    [[unroll]] for (uint i = 0; i < OWN; i++) {
      sums += vec4(dot(k[i], k[i]), dot(q[i], q[i]), dot(q[i], k[i]), dot(k[i], s[i]));
      qs += dot(q[i], s[i]);
    }
    sums = SUM_OF_TEAM(sums);
    qs = SUM_OF_TEAM(qs);
    float eps = uintBitsToFloat(EPS);
    float k_factor = inversesqrt(sums.x + eps), q_factor = inversesqrt(sums.y + eps) * inversesqrt(float(SIZE));
    float u = strength * (v - decay * k_factor * sums.w);
    [[unroll]] for (uint i = 0; i < OWN; i++) s[i] = decay * s[i] + k[i] * (k_factor * u);
    if (TEAM_LANE == 0) {
      y[row * N_V_HEADS * SIZE + head * SIZE + column] = q_factor * (decay * qs + k_factor * sums.z * u);
    }
    uint behind = state_behind(row);
    if (behind != NO_SLOT) {
      [[unroll]] for (uint i = 0; i < OWN; i++) states[behind / 4 + of_team + FOUR(i)] = s[i];
    }
  }
}
