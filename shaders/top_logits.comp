// top_logits: the 64 largest of each 2048 logits, in falling order, for `sample`
// bindings: logits largest step
// constants: local_size n_vocab takes_greedy
// dispatch: x = logits / 2048, y = results (with several, those that are not drawn are left out, but greedy ones if
//   takes_greedy is 1), local_size a power of two, at least 64
// numerics: exact; of equal logits the lowest index wins, as in numpy
#version 450
#extension GL_GOOGLE_include_directive : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint N_VOCAB = 32000;
layout(constant_id = 2) const uint TAKES_GREEDY = 0;
layout(std430, binding = 0) readonly buffer Logits { uint logits[]; };
layout(std430, binding = 1) writeonly buffer Largest { uvec2 largest[]; };
#define STEP_BINDING 2
#include "lib/step.glsl"
#include "lib/largest.glsl"

// Each invocation looks at its share of the logits. The shares with the 64 largest maxima hold the 64 largest logits,
// and none of these is below the least of those maxima; few others are not.
const uint N_LISTS = (N_VOCAB + TOP_LOGITS - 1) / TOP_LOGITS;
const uint SHARE = TOP_LOGITS / LOCAL_SIZE;
shared uvec2 maxima[LOCAL_SIZE];
shared uvec2 least;
shared uvec2 found[TOP_K * SHARE];
shared uint n_found;

// Past the vocabulary come candidates that are behind all others.
uvec2 candidate(uint i) {
  uint index = gl_WorkGroupID.x * TOP_LOGITS + i;
  return uvec2(index < N_VOCAB ? key_of(logits[gl_WorkGroupID.y * N_VOCAB + index]) : 0, index);
}

bool is_wanted(uint result) {
  return TAKES_GREEDY != 0 ? (step_results[2 * result].z & RESULT_LOGITS) == 0 : is_drawn(result);
}

void main() {
  uint self = gl_LocalInvocationID.x, result = gl_WorkGroupID.y, list = result * N_LISTS + gl_WorkGroupID.x;
  if (gl_NumWorkGroups.y > 1 && (result >= n_results || !is_wanted(result))) return;
  uvec2 own = candidate(self);
  for (uint i = self + LOCAL_SIZE; i < TOP_LOGITS; i += LOCAL_SIZE) {
    uvec2 other = candidate(i);
    if (precedes(other, own)) own = other;
  }
  maxima[self] = own;
  if (self == 0) n_found = 0;
  barrier();
  uint rank = 0;
  for (uint i = 0; i < LOCAL_SIZE; i++) rank += uint(precedes(maxima[i], own));
  if (rank == TOP_K - 1) least = own;
  barrier();
  if (rank < TOP_K) {
    for (uint i = self; i < TOP_LOGITS; i += LOCAL_SIZE) {
      uvec2 other = candidate(i);
      if (!precedes(least, other)) found[atomicAdd(n_found, 1)] = other;
    }
  }
  barrier();
  for (uint i = self; i < n_found; i += LOCAL_SIZE) {
    own = found[i];
    rank = 0;
    for (uint j = 0; j < n_found; j++) rank += uint(precedes(found[j], own));
    if (rank < TOP_K) largest[list * TOP_K + rank] = own;
  }
}
