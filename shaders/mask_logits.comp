// mask_logits: leaves an answer the tokens that its grammar allows, whose bits are set; the others' logits become -inf
// bindings: logits masks step
// constants: local_size n_vocab
// dispatch: x = logits / local_size (a smaller dispatch loops), y = results (those without a mask are left out)
// numerics: exact; token t is bit t % 32 of word t / 32 of a mask
#version 450
#extension GL_GOOGLE_include_directive : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint N_VOCAB = 32000;
layout(std430, binding = 0) writeonly buffer Logits { uint logits[]; }; // as bits: no compiler may take -inf away
layout(std430, binding = 1) readonly buffer Masks { uint masks[]; };    // in host memory, for each slot and result
#define STEP_BINDING 2
#include "lib/step.glsl"

void main() {
  uint result = gl_WorkGroupID.y;
  if (result >= n_results || (step_results[2 * result].z & RESULT_MASKED) == 0) return;
  uint first = result * N_VOCAB, first_word = (step_slot * MAX_NARROW + result) * ((N_VOCAB + 31) / 32);
  uint stride = gl_NumWorkGroups.x * LOCAL_SIZE;
  for (uint i = gl_GlobalInvocationID.x; i < N_VOCAB; i += stride) {
    uint is_allowed = masks[first_word + i / 32] >> (i % 32) & 1u;
    if (is_allowed == 0) logits[first + i] = 0xff800000u;
  }
}
