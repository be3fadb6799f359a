// all_reduce: y = the sum of the parts of all ranks (+ add)
// bindings: part add y step shared state told chain failure
// constants: local_size columns adds n_ranks n_lines polls_in_place n_copies half_lines is_scattered most_polls packs
// push: number first_line width own_rank link n_awaited
// dispatch: x = workgroups, on all ranks the same number, and as many as run at once
// numerics: float32, rank by rank, then add: the same bits on all ranks. With packs, parts (and sums in a second phase) are
//   rounded to 15 bits and an exponent of eight numbers, also by the rank itself
//
// columns is a multiple of 4, with packs of 8. y must be neither part nor add; with packs, where numbers are written once, it may
// be add, and part is overwritten. With is_scattered, each rank adds up a piece of every slice and hands over the sums in a
// second phase: of many ranks' large slices, fewer numbers have to be read.
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
layout(constant_id = 8) const uint IS_SCATTERED = 0;
layout(constant_id = 9) const uint MOST_POLLS = 0; // of a wait in a chain; 0: it is in none
layout(constant_id = 10) const uint PACKS = 0;
layout(push_constant) uniform Push {
  uint number;
  uint first_line;
  uint width;
  uint own_rank;
  uint link;
  uint n_awaited;
};
layout(std430, binding = 0) coherent buffer Part { vec4 part[]; };
layout(std430, binding = 1) coherent readonly buffer Add { vec4 add[]; };
layout(std430, binding = 2) coherent buffer Y { vec4 y[]; };
#define STEP_BINDING 3
#define SHARED_BINDING 4
#define STATE_BINDING 5
#define TOLD_BINDING 6
#define CHAIN_BINDING 7
#define FAILURE_BINDING 8
#include "lib/step.glsl"
#include "lib/chain.glsl"
#include "lib/exchange.glsl"
#include "lib/shared_exponent.glsl"

#define Numbers mat2x4 // those of a four: eight, or the first four
const uint FOUR_NUMBERS = PACKS != 0 ? 8 : 4;
const uint N_PIECES = IS_SCATTERED != 0 ? N_RANKS : 1;

uint part_of(uint n_fours, uint n_parts) { return (n_fours + n_parts - 1) / n_parts; }

// The slice of the workgroup, in fours that are handed over; it consists of pieces, the last of which may be shorter.
uint first, n, piece;

uint begin_of(uint which) { return min(which * piece, n); }

// Four i of the slice: of the rank's own part, or, with packs, of the sums that are in its place.
uvec4 own_four(uint i) {
  uint at = first + i;
  return PACKS != 0 ? packed_eight(part[2 * at], part[2 * at + 1]) : floatBitsToUint(part[at]);
}

Numbers numbers_in(uvec4 four) {
  if (PACKS != 0) return Numbers(first_of_eight(four), last_of_eight(four));
  return Numbers(uintBitsToFloat(four), vec4(0.0));
}

void put(uint i, Numbers numbers, bool adds) {
  uint at = first + i;
  if (PACKS == 0) {
    y[at] = adds ? add[at] + numbers[0] : numbers[0];
    return;
  }
  y[2 * at] = adds ? add[2 * at] + numbers[0] : numbers[0];
  y[2 * at + 1] = adds ? add[2 * at + 1] + numbers[1] : numbers[1];
}

void write_copy(uint copy) {
  uint at = numbers_of(own_rank, copy);
  for (uint which = 0; which < N_PIECES; which++) {
    uint sum = 0;
    for (uint i = begin_of(which) + gl_LocalInvocationIndex; i < begin_of(which + 1); i += LOCAL_SIZE) {
      uvec4 four = own_four(i);
      shared_fours[at + i] = four;
      sum += sum_of(four);
    }
    if (copy == 0) atomicAdd(own_sums[which], sum);
  }
}

// Adds up the slice, or this rank's piece of it, there without `add`.
void add_up(uint copy, uint begin, uint end) {
  uint at[MOST_RANKS], sum[MOST_RANKS];
  [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++) {
    at[rank] = numbers_of(rank, copy);
    sum[rank] = 0;
  }
  for (uint i = begin + gl_LocalInvocationIndex; i < end; i += LOCAL_SIZE) {
    uvec4 parts[MOST_RANKS]; // all on their way together
    [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
      if (rank < N_RANKS) parts[rank] = rank == own_rank ? own_four(i) : shared_fours[at[rank] + i];
    precise Numbers total = numbers_in(parts[0]);
    [[unroll]] for (uint rank = 1; rank < MOST_RANKS; rank++)
      if (rank < N_RANKS) total += numbers_in(parts[rank]);
    [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
      if (rank < N_RANKS) sum[rank] += sum_of(parts[rank]);
    if (IS_SCATTERED == 0 || PACKS == 0) {
      put(i, total, ADDS != 0 && IS_SCATTERED == 0);
    } else {
      part[2 * (first + i)] = total[0];
      part[2 * (first + i) + 1] = total[1];
    }
  }
  [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
    if (rank < N_RANKS && rank != own_rank) atomicAdd(sums[rank], sum[rank]);
}

// Hands over the sums of this rank's piece.
void write_sums(uint copy, uint begin, uint end) {
  uint at = numbers_of(own_rank, copy), sum = 0;
  for (uint i = begin + gl_LocalInvocationIndex; i < end; i += LOCAL_SIZE) {
    uvec4 four = PACKS != 0 ? own_four(i) : floatBitsToUint(y[first + i]);
    shared_fours[at + i - begin] = four;
    sum += sum_of(four);
    if (PACKS != 0) put(i, numbers_in(four), ADDS != 0); // rounded as for the others
  }
  if (copy == 0) atomicAdd(own_sums[0], sum);
}

void read_sums(uint copy) {
  uint sum[MOST_RANKS];
  [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++) sum[rank] = 0;
  for (uint i = gl_LocalInvocationIndex; i < piece; i += LOCAL_SIZE) {
    uvec4 fours[MOST_RANKS]; // all on their way together
    [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
      if (rank < N_RANKS && rank != own_rank && rank * piece + i < n) fours[rank] = shared_fours[numbers_of(rank, copy) + i];
    [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++) {
      if (rank >= N_RANKS || rank == own_rank || rank * piece + i >= n) continue;
      put(rank * piece + i, numbers_in(fours[rank]), ADDS != 0);
      sum[rank] += sum_of(fours[rank]);
    }
  }
  [[unroll]] for (uint rank = 0; rank < MOST_RANKS; rank++)
    if (rank < N_RANKS && rank != own_rank) atomicAdd(sums[rank], sum[rank]);
}

// Whether the slice, or this rank's piece of it, is added up.
bool have_added(uint begin, uint end) {
  write_copy(0);
  write_flags(false, N_PIECES);
  for (uint copy = 1; copy < N_COPIES; copy++) write_copy(copy);
  bool is_sound = await_flags(IS_SCATTERED != 0 ? own_rank : 0);
  for (uint copy = 0; is_sound && copy < N_COPIES; copy++) {
    add_up(copy, begin, end);
    if (fits(copy == N_COPIES - 1)) return true;
    is_sound = failure_code == 0;
  }
  return false;
}

// Whether the sums of all other pieces have come.
bool have_gathered(uint begin, uint end) {
  write_sums(0, begin, end);
  write_flags(false, 1);
  for (uint copy = 1; copy < N_COPIES; copy++) write_sums(copy, begin, end);
  bool is_sound = await_flags(0);
  for (uint copy = 0; is_sound && copy < N_COPIES; copy++) {
    read_sums(copy);
    if (fits(copy == N_COPIES - 1)) return true;
    is_sound = failure_code == 0;
  }
  return false;
}

void main() {
  await_link();
  uint n_all = n_rows * COLUMNS / FOUR_NUMBERS, n_groups = gl_NumWorkGroups.x;
  uint share = part_of(n_all, n_groups), room = part_of(width * COLUMNS / FOUR_NUMBERS, n_groups);
  uint second_room = IS_SCATTERED != 0 ? part_of(room, N_RANKS) : 0;
  first = min(gl_WorkGroupID.x * share, n_all);
  n = min(share, n_all - first);
  piece = part_of(n, N_PIECES);
  uint own = IS_SCATTERED != 0 ? own_rank : 0, begin = begin_of(own), end = begin_of(own + 1);
  bool is_first = begin_exchange(room, second_room), is_sound = is_first && have_added(begin, end);
  if (!is_first) write_flags(true, N_PIECES);
  if (IS_SCATTERED != 0) {
    bool is_told = !is_sound; // the others, instead of sums
    begin_second_phase(second_room);
    if (is_told) write_flags(true, 1);
    is_sound = !is_told && have_gathered(begin, end);
    for (uint i = begin + gl_LocalInvocationIndex; is_sound && ADDS != 0 && PACKS == 0 && i < end; i += LOCAL_SIZE)
      y[first + i] = add[first + i] + y[first + i];
  }
  if (is_first && !is_sound) tell_failure();
  end_link();
}
