// delta_net_fused: convolution, delta_net and gated_norm for one token; a workgroup takes a value head
// bindings: projected conv_weight states dt a norm_weight y step chain failure
// constants: local_size lanes n_k_heads n_v_heads head_dim n_kernel is_grouped z_column beta_column alpha_column has_fused_gates eps norm_eps slot_words state_word most_polls
// push: link n_awaited
// dispatch: x = n_v_heads; a team of `lanes` invocations keeps some columns of the head's state
// subgroup: arithmetic shuffle
// requires: full subgroups; head_dim a multiple of 4 * lanes
// numerics: float32; eps and norm_eps are sent as the bits of a float32
// source: as in convolution, delta_net and gated_norm
//
// projected: the token's row (queries | keys | values | ...), with z, beta and alpha behind them; see these shaders. The
// state of the convolution lies at the beginning of a slot, S at state_word. Key heads that several value heads share are
// convolved by each of them, and stored by the first. States are loaded before the wait for `projected`.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#ifdef MEMORY_MODEL
#pragma use_vulkan_memory_model
#extension GL_KHR_memory_scope_semantics : require
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 512;
layout(constant_id = 1) const uint LANES = 8;
layout(constant_id = 2) const uint N_K_HEADS = 16;
layout(constant_id = 3) const uint N_V_HEADS = 48;
layout(constant_id = 4) const uint SIZE = 128;
layout(constant_id = 5) const uint N_KERNEL = 4;
layout(constant_id = 6) const uint IS_GROUPED = 0;
layout(constant_id = 7) const uint Z_COLUMN = 10240;
layout(constant_id = 8) const uint BETA_COLUMN = 16384;
layout(constant_id = 9) const uint ALPHA_COLUMN = 16432;
layout(constant_id = 10) const uint HAS_FUSED_GATES = 0;
layout(constant_id = 11) const uint EPS = 0x358637bd; // 1e-6
layout(constant_id = 12) const uint NORM_EPS = 0x358637bd;
layout(constant_id = 13) const uint SLOT_WORDS = 1024;
layout(constant_id = 14) const uint STATE_WORD = 0;
layout(constant_id = 15) const uint MOST_POLLS = 0;
layout(push_constant) uniform Push {
  uint link;
  uint n_awaited;
};
layout(std430, binding = 0) coherent readonly buffer Projected { float gates[]; };
layout(std430, binding = 1) readonly buffer ConvWeight { float conv_weight[]; };
layout(std430, binding = 2) buffer States { float states[]; };
layout(std430, binding = 3) readonly buffer Dt { float dt[]; };
layout(std430, binding = 4) readonly buffer A { float a[]; };
layout(std430, binding = 5) readonly buffer NormWeight { float norm_weight[]; };
layout(std430, binding = 6) coherent writeonly buffer Y { float y[]; };
#define STEP_BINDING 7
#define CHAIN_BINDING 8
#define FAILURE_BINDING 9
const uint first_word = 0;
const uint GATES_COLUMNS = 0; // there is one row
#include "lib/step.glsl"
#include "lib/states.glsl"
#include "lib/chain.glsl"
#include "lib/subgroups.glsl"
#include "lib/workgroup_sum.glsl"
#include "lib/teams.glsl"
#include "lib/delta_gates.glsl"

const uint CONVOLVED = (2 * N_K_HEADS + N_V_HEADS) * SIZE;
const uint TEAMS = LOCAL_SIZE / LANES;
const uint TEAM_COLUMNS = (SIZE + TEAMS - 1) / TEAMS;             // of the state
const uint OWN_COLUMNS = (3 * SIZE + LOCAL_SIZE - 1) / LOCAL_SIZE; // that an invocation convolves

shared float qkv[3 * SIZE]; // of the head
shared float mixed[SIZE];

// the i-th of an invocation's columns among the head's, and in the row
uint own_column(uint i) { return i * LOCAL_SIZE + gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID; }
uint row_column(uint column, uint head, uint k_head) {
  uint within = column % SIZE;
  if (column < 2 * SIZE) return (column / SIZE * N_K_HEADS + k_head) * SIZE + within;
  return (2 * N_K_HEADS + head) * SIZE + within;
}

void main() {
  uint head = gl_WorkGroupID.x, k_head = key_head(head);
  uint self = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID, team = self / LANES;
  uint before = state_before(0), behind = state_behind(0);

  // what does not depend on the token
  vec4 s[TEAM_COLUMNS * OWN];
  [[unroll]] for (uint c = 0; c < TEAM_COLUMNS; c++) {
    uint column = c * TEAMS + team, from = STATE_WORD + (head * SIZE + min(column, SIZE - 1)) * SIZE;
    [[unroll]] for (uint i = 0; i < OWN; i++) {
      uint at = before + from + 4 * FOUR(i);
      s[c * OWN + i] = before == NO_SLOT ? vec4(0.0) : vec4(states[at], states[at + 1], states[at + 2], states[at + 3]);
    }
  }
  float earlier[OWN_COLUMNS], window[OWN_COLUMNS * (N_KERNEL - 1)], newest_weight[OWN_COLUMNS];
  [[unroll]] for (uint i = 0; i < OWN_COLUMNS; i++) {
    uint column = row_column(min(own_column(i), 3 * SIZE - 1), head, k_head);
    earlier[i] = 0.0;
    [[unroll]] for (uint k = 0; k < N_KERNEL - 1; k++) {
      float v = before == NO_SLOT ? 0.0 : states[before + k * CONVOLVED + column];
      window[i * (N_KERNEL - 1) + k] = v;
      earlier[i] += conv_weight[column * N_KERNEL + k] * v;
    }
    newest_weight[i] = conv_weight[column * N_KERNEL + N_KERNEL - 1];
  }
  float rate = a[head], bias = dt[head];
  await_link();

  bool stores_keys = IS_GROUPED != 0 ? head % SHARING == 0 : head < N_K_HEADS; // one of those that share them
  [[unroll]] for (uint i = 0; i < OWN_COLUMNS; i++) {
    if (own_column(i) >= 3 * SIZE) continue;
    uint column = row_column(own_column(i), head, k_head);
    float newest = gates[column], sum = earlier[i] + newest_weight[i] * newest;
    qkv[own_column(i)] = sum / (1.0 + exp(-sum));
    if (behind != NO_SLOT && (stores_keys || own_column(i) >= 2 * SIZE)) {
      [[unroll]] for (uint k = 0; k < N_KERNEL - 1; k++) {
        states[behind + k * CONVOLVED + column] = k + 2 < N_KERNEL ? window[i * (N_KERNEL - 1) + k + 1] : newest;
      }
    }
  }
  barrier();

  vec4 q[OWN], k[OWN], sums = vec4(0.0);
  [[unroll]] for (uint i = 0; i < OWN; i++) {
    [[unroll]] for (uint n = 0; n < 4; n++) {
      q[i][n] = qkv[4 * FOUR(i) + n];
      k[i][n] = qkv[SIZE + 4 * FOUR(i) + n];
    }
    sums.xyz += vec3(dot(k[i], k[i]), dot(q[i], q[i]), dot(q[i], k[i]));
  }
  sums = SUM_OF_TEAM(sums);
  float eps = uintBitsToFloat(EPS), decay = decay_of(0, head, rate, bias), strength = strength_of(0, head);
  float k_factor = inversesqrt(sums.x + eps), q_factor = inversesqrt(sums.y + eps) * inversesqrt(float(SIZE));
  [[unroll]] for (uint c = 0; c < TEAM_COLUMNS; c++) {
    uint column = c * TEAMS + team;
    vec4 of_s = vec4(0.0);
    [[unroll]] for (uint i = 0; i < OWN; i++) of_s.xy += vec2(dot(k[i], s[c * OWN + i]), dot(q[i], s[c * OWN + i]));
    of_s = SUM_OF_TEAM(of_s);
    if (column >= SIZE) continue; // whole teams
    float u = strength * (qkv[2 * SIZE + column] - decay * k_factor * of_s.x);
    if (TEAM_LANE == 0) mixed[column] = q_factor * (decay * of_s.y + k_factor * sums.z * u);
    if (behind != NO_SLOT) {
      [[unroll]] for (uint i = 0; i < OWN; i++) {
        vec4 v = decay * s[c * OWN + i] + k[i] * (k_factor * u);
        uint at = behind + STATE_WORD + (head * SIZE + column) * SIZE + 4 * FOUR(i);
        [[unroll]] for (uint n = 0; n < 4; n++) states[at + n] = v[n];
      }
    }
  }
  barrier();

  float squares = 0.0;
  for (uint c = self; c < SIZE; c += LOCAL_SIZE) squares += mixed[c] * mixed[c];
  float factor = inversesqrt(sum_of_workgroup(squares) / float(SIZE) + uintBitsToFloat(NORM_EPS));
  for (uint c = self; c < SIZE; c += LOCAL_SIZE) {
    float z = gates[Z_COLUMN + head * SIZE + c];
    y[head * SIZE + c] = mixed[c] * factor * norm_weight[c] * z / (1.0 + exp(-z));
  }
  end_link();
}
