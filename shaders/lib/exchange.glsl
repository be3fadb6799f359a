// An exchange: ranks, which are devices of one process, hand each other numbers through host memory that all of them
// have imported, inside one dispatch of each and without the CPU.
//
// A workgroup writes its slice of the rank's own numbers, then a flag, waits for the flags of the same workgroup of all
// other ranks, and reads their slices. It waits only after it has written, so ranks never wait for each other in a circle,
// as long as all workgroups of a dispatch run at once.
//
// GPUs keep what they have read from host memory, even by volatile or atomic reads, until the submit ends (seen on H200s).
// So a line is read once in a submit, and a flag is written to N_LINES lines (of 128 bytes), and each poll reads the next one: after longer and longer delays, so
// that few lines are enough for some seconds. A CPU device (lavapipe) keeps nothing, but its threads may be held up for
// long: there POLLS_IN_PLACE is not 0, and the first line alone is polled so often, by atomics, in both phases together. Its invocations poll one
// after another, since each can go through so many rounds only.
//
// Vulkan orders memory for one device only, so another may see a flag before all numbers that were written before it. A
// flag therefore tells the sum of the numbers. Where it does not fit, they are read again, from the second of N_COPIES
// places, which is written behind the flag; if it does not fit either, the exchange has failed. Where there is one copy only,
// its flag comes after a delay.
//
// Exchanges have consecutive numbers, the same on all ranks: the step's first (spare[0] of lib/step.glsl) plus `number`.
// Odd ones use one half of the memory, even ones the other: who writes the next but one has seen the flags of the next one,
// so all have read what is overwritten. Exchanges of a submit have lines of their own there, from first_line on.
//
// An exchange may have a second phase, with flags and numbers of its own behind those of the first in each block: a rank
// then adds up a piece of all slices and hands over the sums. A line of flags has a flag for each reader: in a first phase
// whose readers each read another piece, it tells the sum of that piece; otherwise all read the first one.
//
// A wait ends when its polls are used up. The exchange then fails: all later ones fail at once, the other ranks are told in
// place of a flag, and the host finds out which rank was missing (vkllm/gpu/program/exchange.py).
//
// Define SHARED_BINDING, STATE_BINDING and TOLD_BINDING, and include lib/step.glsl, before the include. The including
// file has the constants LOCAL_SIZE, N_RANKS, N_LINES, POLLS_IN_PLACE, N_COPIES and HALF_LINES (lines of a half), and the
// push constants number, first_line and own_rank.
#define MOST_RANKS 8
#define LINE_FOURS 8

layout(std430, binding = SHARED_BINDING) coherent buffer Shared { uvec4 shared_fours[]; };
layout(std430, binding = SHARED_BINDING) coherent volatile buffer Flags { uvec4 flags[]; };
layout(std430, binding = SHARED_BINDING) coherent buffer SharedWords { uint shared_words[]; };
layout(std430, binding = STATE_BINDING) coherent buffer State {
  uint failed;        // why the first exchange failed; 0: none has
  uint unused_result; // of delays, which compilers would take out if nobody could see it
  uint n_retries;     // by workgroups, because numbers came after their flag
};
layout(std430, binding = TOLD_BINDING) writeonly buffer Told { uint told[2]; }; // the same, and its number: for the host

// Why an exchange failed: 1 + the rank that is to blame, and one of these
#define MISSING 0u
#define DAMAGED 256u
#define FAILED_MARK 0x464b4c56u // a flag that tells of a failure

const uint FIRST_DELAY = 16;
const uint RETRY_DELAY = 4096;
const uint SETTLING_DELAY = 2048; // before the flag of numbers that are written once

shared uint own_sums[MOST_RANKS];  // of what was written, for each flag of a line
shared uint flag_sums[MOST_RANKS]; // as the flags tell
shared uint has_flag[MOST_RANKS];
shared uint sums[MOST_RANKS]; // of what was read
shared uint failure_code;     // 0: none

uint exchange_number() { return spare[0] + number; }

// Blocks of the exchange, in fours: of each rank and workgroup, for each phase, its flags, then the copies of its numbers.
// phase_at: where the phase begins in a block.
uint blocks_at, block_fours, phase_at, copy_fours;

uint polls_left; // of this invocation, in place

uint flag_of(uint rank) { return blocks_at + (rank * gl_NumWorkGroups.x + gl_WorkGroupID.x) * block_fours + phase_at; }
uint numbers_of(uint rank, uint copy) { return flag_of(rank) + N_LINES * LINE_FOURS + copy * copy_fours; }

uint sum_of(uvec4 four) { return four.x + four.y + four.z + four.w; }

// Keeps an invocation busy for a while, on GPUs.
uint delayed(uint rounds, uint value) {
  for (uint i = 0; i < rounds; i++) value = ((value << 1) | (value >> 31)) ^ i;
  return value;
}

// On CPUs: some microseconds without a round of a loop.
float paused(float x) {
  [[unroll]] for (int i = 0; i < 256; i++) x = 1.0 / (sqrt(x) + 1.5);
  return x;
}

uint whole_lines(uint n_fours) { return (n_fours + LINE_FOURS - 1) / LINE_FOURS * LINE_FOURS; }
uint phase_fours(uint copy_fours) { return N_LINES * LINE_FOURS + N_COPIES * copy_fours; }

void begin_phase() {
  uint self = gl_LocalInvocationIndex;
  if (self < MOST_RANKS) own_sums[self] = flag_sums[self] = has_flag[self] = sums[self] = 0;
  barrier();
}

// All invocations begin with this; room: fours of numbers that a workgroup has room for, second_room: in a second phase, 0
// where there is none. Whether no exchange has failed yet.
bool begin_exchange(uint room, uint second_room) {
  copy_fours = whole_lines(room);
  phase_at = 0;
  block_fours = phase_fours(copy_fours) + (second_room == 0 ? 0 : phase_fours(whole_lines(second_room)));
  blocks_at = (exchange_number() % 2 * HALF_LINES + first_line) * LINE_FOURS;
  polls_left = POLLS_IN_PLACE;
  if (gl_LocalInvocationIndex == 0) failure_code = failed;
  begin_phase();
  return failure_code == 0;
}

// All invocations, when they have done with the first phase.
void begin_second_phase(uint second_room) {
  phase_at = phase_fours(copy_fours);
  copy_fours = whole_lines(second_room);
  begin_phase();
}

// The flags, once the numbers of all invocations are written: n of them in a line.
void write_flags(bool is_failed, uint n) {
  memoryBarrierBuffer();
  barrier();
  uint value = delayed(POLLS_IN_PLACE == 0 && N_COPIES == 1 ? SETTLING_DELAY : 0, own_rank);
  if (value == FAILED_MARK) unused_result = value;
  uint number = exchange_number(), first = flag_of(own_rank);
  for (uint i = gl_LocalInvocationIndex; i < N_LINES * n; i += LOCAL_SIZE) {
    uint reader = i % n, sum = is_failed ? failure_code : own_sums[reader];
    shared_fours[first + i / n * LINE_FOURS + reader] =
        uvec4(number, sum, ~number, is_failed ? sum ^ FAILED_MARK : ~sum);
  }
}

// Whether a flag is that of this exchange, or tells of a failure; one that is half written is neither.
bool is_final(uvec4 flag, uint rank) {
  if (flag.x != ~flag.z) return false;
  if (flag.w == (flag.y ^ FAILED_MARK)) {
    failure_code = flag.y;
    return true;
  }
  if (flag.x != exchange_number() || flag.y != ~flag.w) return false;
  flag_sums[rank] = flag.y;
  has_flag[rank] = 1;
  return true;
}

void poll_fresh_lines(uint rank, uint first) {
  uint delay = FIRST_DELAY, value = rank;
  for (uint poll = 0; poll < N_LINES; poll++) {
    if (is_final(flags[first + poll * LINE_FOURS], rank)) break;
    value = delayed(delay, value);
    delay += delay / 4 + 1;
  }
  if (value == FAILED_MARK) unused_result = value;
}

void poll_in_place(uint rank, uint first) {
  float value = float(rank);
  for (; polls_left > 0 && has_flag[rank] == 0 && failure_code == 0; polls_left--) {
    uvec4 flag;
    flag.w = atomicOr(shared_words[4 * first + 3], 0);
    flag.z = atomicOr(shared_words[4 * first + 2], 0);
    flag.y = atomicOr(shared_words[4 * first + 1], 0);
    flag.x = atomicOr(shared_words[4 * first], 0);
    if (!is_final(flag, rank)) value = paused(value);
  }
  if (value == 99.0) unused_result = 1;
}

// Waits for the flags of all other ranks, of each line that of a reader; false: the exchange has failed.
bool await_flags(uint reader) {
  uint rank = gl_LocalInvocationIndex % MOST_RANKS;
  bool is_polling = POLLS_IN_PLACE != 0 || gl_LocalInvocationIndex < MOST_RANKS;
  if (is_polling && rank < N_RANKS && rank != own_rank) {
    uint first = flag_of(rank) + reader;
    if (POLLS_IN_PLACE != 0)
      poll_in_place(rank, first);
    else
      poll_fresh_lines(rank, first);
  }
  barrier();
  if (gl_LocalInvocationIndex == 0 && failure_code == 0)
    for (uint other = N_RANKS; other > 0; other--)
      if (other - 1 != own_rank && has_flag[other - 1] == 0) failure_code = MISSING | other;
  barrier();
  if (POLLS_IN_PLACE != 0) memoryBarrierBuffer(); // GPUs wait there for their own writes; sums tell what is read too early
  return failure_code == 0;
}

// Whether all numbers that were read (added up in `sums`) are those that the flags tell of; after a delay if not, with the
// sums of the others cleared for another try. is_last: no try is left, and the exchange has failed.
bool fits(bool is_last) {
  barrier();
  uint wrong = 0;
  for (uint rank = 0; rank < N_RANKS; rank++)
    if (rank != own_rank && sums[rank] != flag_sums[rank]) wrong = rank + 1;
  barrier();
  if (wrong == 0) return true;
  if (gl_LocalInvocationIndex < N_RANKS && gl_LocalInvocationIndex != own_rank) sums[gl_LocalInvocationIndex] = 0;
  if (gl_LocalInvocationIndex == 0) {
    atomicAdd(n_retries, 1);
    if (is_last) failure_code = DAMAGED | wrong;
  }
  uint value = delayed(POLLS_IN_PLACE != 0 ? 0 : RETRY_DELAY, wrong);
  if (value == FAILED_MARK) unused_result = value;
  barrier();
  return false;
}

// Makes the failure known: to later exchanges and to the host. The other ranks are told by the flags of the next exchange.
void tell_failure() {
  if (gl_LocalInvocationIndex == 0 && atomicCompSwap(failed, 0, failure_code) == 0) {
    told[0] = failure_code;
    told[1] = exchange_number();
  }
}
