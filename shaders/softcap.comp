// softcap: logits = cap * tanh(factor * logits / cap) in place, or factor * logits where cap is 0
// bindings: logits
// constants: local_size n_vocab factor cap
// push:
// dispatch: x = any, y = rows of logits
// numerics: float32; factor and cap are sent as the bits of a float32
// source: Gemma Team 2024, arXiv 2408.00118
#version 450
#extension GL_GOOGLE_include_directive : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint N_VOCAB = 32000;
layout(constant_id = 2) const uint FACTOR = 0x3f800000; // 1.0
layout(constant_id = 3) const uint CAP = 0;
layout(std430, binding = 0) buffer Logits { float logits[]; };
#include "lib/softcap.glsl"

void main() {
  float factor = uintBitsToFloat(FACTOR);
  uint first = gl_WorkGroupID.y * N_VOCAB;
  for (uint i = gl_GlobalInvocationID.x; i < N_VOCAB; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
    float v = factor * logits[first + i];
    logits[first + i] = CAP != 0 ? softcapped(v, uintBitsToFloat(CAP)) : v;
  }
}
