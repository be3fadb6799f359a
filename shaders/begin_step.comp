// begin_step: copies a step from a slot in host memory to the device, once a step instead of once a dispatch
// bindings: slots next_token step chain failure
// constants: local_size chain_words
// push: slot_word
// dispatch: x = 1
// numerics: copies, and clears the chain; a row whose last word has its highest bit set takes the token that the last step chose
#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint CHAIN_WORDS = 8;
layout(push_constant) uniform Push {
  uint slot_word; // where the slot begins
};
#define MAX_ROWS 512
#define HEADER_WORDS 8
layout(std430, binding = 0) readonly buffer Slots { uint slots[]; };
layout(std430, binding = 1) readonly buffer NextToken { uint next_token; };
layout(std430, binding = 2) writeonly buffer Step { uint step_words[]; };
layout(std430, binding = 3) writeonly buffer Chain { uvec4 chain[]; }; // lib/chain.glsl
layout(std430, binding = 4) readonly buffer Failure { uint failure; };

void main() {
  uint failed = failure; // on its way meanwhile
  for (uint i = gl_LocalInvocationID.x; i < CHAIN_WORDS / 4; i += gl_WorkGroupSize.x) chain[i] = uvec4(0);
  uint n_rows = slots[slot_word];
  uint n_table = slots[slot_word + 1];
  if (gl_LocalInvocationID.x < HEADER_WORDS) {
    step_words[gl_LocalInvocationID.x] = slots[slot_word + gl_LocalInvocationID.x];
  }
  for (uint row = gl_LocalInvocationID.x; row < n_rows; row += gl_WorkGroupSize.x) {
    uint word = HEADER_WORDS + 4 * row;
    uint last = slots[slot_word + word + 3];
    step_words[word] = last >> 31 != 0 ? next_token : slots[slot_word + word];
    step_words[word + 1] = slots[slot_word + word + 1];
    step_words[word + 2] = slots[slot_word + word + 2];
    step_words[word + 3] = last & 0x7fffffff;
  }
  uint table = HEADER_WORDS + 4 * MAX_ROWS;
  for (uint i = gl_LocalInvocationID.x; i < n_table; i += gl_WorkGroupSize.x) {
    step_words[table + i] = slots[slot_word + table + i];
  }
  // a wait that was given up in a step before ends those of this one, too, until the host has dealt with it
  if (gl_LocalInvocationID.x == 0) chain[0].x = failed;
}
