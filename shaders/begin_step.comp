// begin_step: copies a step from a slot in host memory to the device, once a step instead of once a dispatch
// bindings: slots next_token step chain failure
// constants: local_size chain_words
// push: slot_word
// dispatch: x = 1
// numerics: copies, and clears the chain; a row whose last word has its highest bit set takes the token that the last step
//   chose for the sequence that its first word names
#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint CHAIN_WORDS = 8;
layout(push_constant) uniform Push {
  uint slot_word; // where the slot begins, a multiple of 4
};
#define MAX_ROWS 512
#define MAX_NARROW 32
#define HEADER_WORDS 8
layout(std430, binding = 0) readonly buffer Slots { uvec4 slots[]; };
layout(std430, binding = 1) readonly buffer NextToken { uint next_token[]; };
layout(std430, binding = 2) writeonly buffer Step { uvec4 step_fours[]; }; // lib/step.glsl
layout(std430, binding = 3) writeonly buffer Chain { uvec4 chain[]; };     // lib/chain.glsl
layout(std430, binding = 4) readonly buffer Failure { uint failure; };

void main() {
  uint failed = failure; // on its way meanwhile
  for (uint i = gl_LocalInvocationID.x; i < CHAIN_WORDS / 4; i += gl_WorkGroupSize.x) chain[i] = uvec4(0);
  uint slot = slot_word / 4;
  uvec4 header = slots[slot]; // rows, words of the table, parts, results
  uint n_rows = header.x, n_parts = header.z, n_results = 2 * header.w, n_table = (header.y + 3) / 4;
  uint rows_end = HEADER_WORDS / 4 + n_rows, parts_end = rows_end + n_parts, results_end = parts_end + n_results;
  // one loop over all that is there, since each round waits for host memory
  for (uint i = gl_LocalInvocationID.x; i < results_end + n_table; i += gl_WorkGroupSize.x) {
    uint at = i;
    if (i >= rows_end) at += MAX_ROWS - n_rows;
    if (i >= parts_end) at += MAX_NARROW - n_parts;
    if (i >= results_end) at += 2 * MAX_NARROW - n_results;
    uvec4 four = slots[slot + at];
    if (i >= HEADER_WORDS / 4 && i < rows_end && four.w >> 31 != 0) {
      four.x = next_token[four.x];
      four.w &= 0x7fffffff;
    }
    step_fours[at] = four;
  }
  // a wait that was given up in a step before ends those of this one, too, until the host has dealt with it
  if (gl_LocalInvocationID.x == 0) chain[0].x = failed;
}
