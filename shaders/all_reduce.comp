// all_reduce: y = the sum of the parts of all ranks (+ add)
// bindings: part add y step shared state failure
// constants: local_size columns adds n_ranks n_lines polls_in_place n_copies half_lines
// push: number width own_rank
// dispatch: x = workgroups, on all ranks the same number, and as many as run at once
// numerics: float32, rank by rank, then add: the same bits on all ranks
//
// columns is a multiple of 4; y must not be add.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint ADDS = 0;
layout(constant_id = 3) const uint N_RANKS = 2;
layout(constant_id = 4) const uint N_LINES = 1;
layout(constant_id = 5) const uint POLLS_IN_PLACE = 0;
layout(constant_id = 6) const uint N_COPIES = 2;
layout(constant_id = 7) const uint HALF_LINES = 65536;
layout(push_constant) uniform Push {
  uint number;
  uint width;
  uint own_rank;
};
layout(std430, binding = 0) readonly buffer Part { vec4 part[]; };
layout(std430, binding = 1) readonly buffer Add { vec4 add[]; };
layout(std430, binding = 2) writeonly buffer Y { vec4 y[]; };
#define STEP_BINDING 3
#define SHARED_BINDING 4
#define STATE_BINDING 5
#define FAILURE_BINDING 6
#include "lib/step.glsl"
#include "lib/exchange.glsl"

uint share_of(uint n_fours) { return (n_fours + gl_NumWorkGroups.x - 1) / gl_NumWorkGroups.x; }

void write_copy(uint copy, uint first, uint n) {
  uint at = numbers_of(own_rank, copy), sum = 0;
  for (uint i = gl_LocalInvocationIndex; i < n; i += LOCAL_SIZE) {
    uvec4 four = floatBitsToUint(part[first + i]);
    shared_fours[at + i] = four;
    sum += sum_of(four);
  }
  if (copy == 0) atomicAdd(sums[own_rank], sum);
}

void add_up(uint copy, uint first, uint n) {
  uint at[MOST_RANKS], sum[MOST_RANKS];
  [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++) {
    at[rank] = numbers_of(rank, copy);
    sum[rank] = 0;
  }
  for (uint i = gl_LocalInvocationIndex; i < n; i += LOCAL_SIZE) {
    uvec4 parts[MOST_RANKS]; // all on their way together
    [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
      if (rank < N_RANKS) parts[rank] = rank == own_rank ? floatBitsToUint(part[first + i]) : shared_fours[at[rank] + i];
    vec4 total = uintBitsToFloat(parts[0]);
    [[unroll]] for (uint rank = 1; rank < MOST_RANKS; rank++)
      if (rank < N_RANKS) total += uintBitsToFloat(parts[rank]);
    [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
      if (rank < N_RANKS) sum[rank] += sum_of(parts[rank]);
    y[first + i] = ADDS != 0 ? add[first + i] + total : total;
  }
  [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
    if (rank < N_RANKS && rank != own_rank) atomicAdd(sums[rank], sum[rank]);
}

void main() {
  uint n_all = n_rows * COLUMNS / 4, share = share_of(n_all), room = share_of(width * COLUMNS / 4);
  uint first = min(gl_WorkGroupID.x * share, n_all), n = min(share, n_all - first);
  if (!begin_exchange(room)) {
    write_flag(true);
    return;
  }
  write_copy(0, first, n);
  write_flag(false);
  for (uint copy = 1; copy < N_COPIES; copy++) write_copy(copy, first, n);
  bool is_sound = await_flags();
  for (uint copy = 0; is_sound && copy < N_COPIES; copy++) {
    add_up(copy, first, n);
    if (fits(copy == N_COPIES - 1)) return;
    is_sound = failure_code == 0;
  }
  tell_failure();
}
