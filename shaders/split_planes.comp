// split_planes: raw GGUF blocks, as they lie in the file, to a plane of quants and a plane of scales
// bindings: raw quants scales
// constants: local_size
// push: n_units first_unit
// dispatch: x = units / local_size (a smaller dispatch loops)
// formats: quantized
// numerics: copies, and d divided by a power of two, exactly
// source: vkllm/formats/quants.py, split_planes
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push {
  uint n_units;
  uint first_unit; // where this chunk begins in the planes
};
layout(std430, binding = 0) readonly buffer Raw { uint raw[]; };
layout(std430, binding = 1) writeonly buffer Quants { uint quants[]; };
layout(std430, binding = 2) writeonly buffer Scales { uint scales[]; };

// four bytes and two bytes from any byte on
uint raw_word(uint from) {
  uint shift = from % 4 * 8, word = raw[from / 4] >> shift;
  return shift == 0 ? word : word | raw[from / 4 + 1] << (32 - shift);
}

uint raw_half(uint from) {
  return from % 4 == 3 ? raw_word(from) & 0xffffu : bitfieldExtract(raw[from / 4], int(from % 4 * 8), 16);
}

// A format's file defines PARTS, invocations for a unit, and split(unit, part).
#define SPLITS
#include "formats/format.glsl"

void main() {
  uint stride = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  for (uint i = gl_GlobalInvocationID.x; i < n_units * PARTS; i += stride) split(i / PARTS, i % PARTS);
}
