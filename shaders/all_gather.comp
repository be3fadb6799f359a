// all_gather: the candidates of all ranks for the tokens of results, from each rank's part of the vocabulary
// bindings: largest gathered step shared state told
// constants: local_size n_vocab most_lists n_ranks n_lines polls_in_place n_copies half_lines
// push: number first_line width own_rank first_token
// dispatch: x = workgroups, on all ranks the same number, and as many as run at once
// numerics: exact
//
// `largest` are the lists that top_logits makes of this rank's n_vocab logits, whose first token is first_token of the whole
// vocabulary. In `gathered` each result has most_lists lists of each rank, in their order; those that a rank does not have
// are of nothing.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint N_VOCAB = 16384;
layout(constant_id = 2) const uint MOST_LISTS = 8;
layout(constant_id = 3) const uint N_RANKS = 2;
layout(constant_id = 4) const uint N_LINES = 1;
layout(constant_id = 5) const uint POLLS_IN_PLACE = 0;
layout(constant_id = 6) const uint N_COPIES = 2;
layout(constant_id = 7) const uint HALF_LINES = 65536;
layout(push_constant) uniform Push {
  uint number;
  uint first_line;
  uint width;
  uint own_rank;
  uint first_token;
};
layout(std430, binding = 0) readonly buffer Largest { uvec4 largest[]; }; // two candidates each
layout(std430, binding = 1) writeonly buffer Gathered { uvec4 gathered[]; };
#define STEP_BINDING 2
#define SHARED_BINDING 3
#define STATE_BINDING 4
#define TOLD_BINDING 5
#include "lib/step.glsl"
#include "lib/exchange.glsl"
#include "lib/largest.glsl"

const uint LIST_FOURS = TOP_K / 2;
const uint RANK_FOURS = MOST_LISTS * LIST_FOURS; // of a result
const uint OWN_FOURS = (N_VOCAB + TOP_LOGITS - 1) / TOP_LOGITS * LIST_FOURS;

uint share_of(uint n_fours) { return (n_fours + gl_NumWorkGroups.x - 1) / gl_NumWorkGroups.x; }

uvec2 of_all(uvec2 candidate) {
  return candidate.y < N_VOCAB ? uvec2(candidate.x, candidate.y + first_token) : uvec2(0, 0xffffffffu);
}

// Four i of this rank: of its own lists, with the tokens of the whole vocabulary, or of nothing.
uvec4 own_four(uint i) {
  uint in_result = i % RANK_FOURS;
  uvec4 four = in_result < OWN_FOURS ? largest[i / RANK_FOURS * OWN_FOURS + in_result] : uvec4(0xffffffffu);
  return uvec4(of_all(four.xy), of_all(four.zw));
}

void write_copy(uint copy, uint first, uint n) {
  uint at = numbers_of(own_rank, copy), sum = 0;
  for (uint i = gl_LocalInvocationIndex; i < n; i += LOCAL_SIZE) {
    uvec4 four = own_four(first + i);
    shared_fours[at + i] = four;
    sum += sum_of(four);
  }
  if (copy == 0) atomicAdd(own_sums[0], sum);
}

void read_all(uint copy, uint first, uint n) {
  uint sum[MOST_RANKS];
  [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++) sum[rank] = 0;
  for (uint i = gl_LocalInvocationIndex; i < n; i += LOCAL_SIZE) {
    uvec4 fours[MOST_RANKS]; // all on their way together
    [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
      if (rank < N_RANKS)
        fours[rank] = rank == own_rank ? own_four(first + i) : shared_fours[numbers_of(rank, copy) + i];
    uint result = (first + i) / RANK_FOURS, in_result = (first + i) % RANK_FOURS;
    [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++) {
      if (rank >= N_RANKS) continue;
      gathered[(result * N_RANKS + rank) * RANK_FOURS + in_result] = fours[rank];
      sum[rank] += sum_of(fours[rank]);
    }
  }
  [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
    if (rank < N_RANKS && rank != own_rank) atomicAdd(sums[rank], sum[rank]);
}

void main() {
  uint n_all = min(n_results, width) * RANK_FOURS, share = share_of(n_all), room = share_of(width * RANK_FOURS);
  uint first = min(gl_WorkGroupID.x * share, n_all), n = min(share, n_all - first);
  if (!begin_exchange(room, 0)) {
    write_flags(true, 1);
    return;
  }
  write_copy(0, first, n);
  write_flags(false, 1);
  for (uint copy = 1; copy < N_COPIES; copy++) write_copy(copy, first, n);
  bool is_sound = await_flags(0);
  for (uint copy = 0; is_sound && copy < N_COPIES; copy++) {
    read_all(copy, first, n);
    if (fits(copy == N_COPIES - 1)) return;
    is_sound = failure_code == 0;
  }
  tell_failure();
}
