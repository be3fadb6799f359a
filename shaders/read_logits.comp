// read_logits: copies the logits that the host wants to its memory
// bindings: logits host step
// constants: local_size n_vocab
// push: n_places
// dispatch: x = logits / local_size (a smaller dispatch loops), y = results (those that the host does not want are left out)
// numerics: copies
#version 450
#extension GL_GOOGLE_include_directive : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 64;
layout(constant_id = 1) const uint N_VOCAB = 32000;
layout(push_constant) uniform Push {
  uint n_places; // rows of logits that `host` has for each slot
};
layout(std430, binding = 0) readonly buffer Logits { uint logits[]; };
layout(std430, binding = 1) writeonly buffer Host { uint host[]; };
#define STEP_BINDING 2
#include "lib/step.glsl"

void main() {
  uint result = gl_WorkGroupID.y;
  if (result >= n_results || (step_results[2 * result].z & RESULT_LOGITS) == 0) return;
  uint from = result * N_VOCAB, to = (step_slot * n_places + step_results[2 * result + 1].w) * N_VOCAB;
  uint stride = gl_NumWorkGroups.x * LOCAL_SIZE;
  for (uint i = gl_GlobalInvocationID.x; i < N_VOCAB; i += stride) host[to + i] = logits[from + i];
}
