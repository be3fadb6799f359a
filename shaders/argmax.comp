// argmax: the index of the largest logit, kept on the device for the next step and written to the host
// bindings: logits next_token chosen step
// constants: local_size n_vocab
// dispatch: x = 1, y = results (with several, those that are not greedy are left out)
// numerics: exact; of equal logits the lowest index wins, as in numpy
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint N_VOCAB = 32000;
layout(std430, binding = 0) readonly buffer Logits { float logits[]; };
layout(std430, binding = 1) writeonly buffer NextToken { uint next_token[]; };
layout(std430, binding = 2) writeonly buffer Chosen { uint chosen[]; };
#define STEP_BINDING 3
#include "lib/step.glsl"

#define AT_ONCE 8 // logits whose loads are under way together
shared float best_value[LOCAL_SIZE];
shared uint best_index[LOCAL_SIZE];

void main() {
  uint self = gl_LocalInvocationID.x, result = gl_WorkGroupID.y, first = result * N_VOCAB;
  if (gl_NumWorkGroups.y > 1 && (result >= n_results || (step_results[2 * result].z & RESULT_GREEDY) == 0)) return;
  uvec2 of_result = step_results[2 * result].yz;
  uint slot = step_slot; // on their way meanwhile
  float value = -3.4e38;
  uint index = 0;
  for (uint i = self; i < N_VOCAB; i += AT_ONCE * LOCAL_SIZE) {
    float loaded[AT_ONCE];
    [[unroll]] for (uint k = 0; k < AT_ONCE; k++) loaded[k] = logits[first + min(i + k * LOCAL_SIZE, N_VOCAB - 1)];
    [[unroll]] for (uint k = 0; k < AT_ONCE; k++) {
      if (loaded[k] > value) {
        value = loaded[k];
        index = min(i + k * LOCAL_SIZE, N_VOCAB - 1);
      }
    }
  }
  best_value[self] = value;
  best_index[self] = index;
  for (uint stride = LOCAL_SIZE / 2; stride > 0; stride /= 2) { // LOCAL_SIZE is a power of two
    barrier();
    if (self < stride) {
      float other = best_value[self + stride];
      uint other_index = best_index[self + stride];
      if (other > best_value[self] || (other == best_value[self] && other_index < best_index[self])) {
        best_value[self] = other;
        best_index[self] = other_index;
      }
    }
  }
  if (self == 0) {
    if ((of_result.y & RESULT_LAST) != 0) next_token[of_result.x] = best_index[0];
    chosen[slot * MAX_NARROW + result] = best_index[0];
  }
}
