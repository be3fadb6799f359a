// split_planes: raw GGUF blocks, as they lie in the file, to a plane of quants and a plane of scales
// bindings: raw quants scales
// constants: local_size
// push: n_units first_unit
// dispatch: x = units / local_size (a smaller dispatch loops)
// formats: Q4_0 Q4_1 Q8_0 Q4_K Q5_K Q6_K
// numerics: copies, and Q6_K's d / 4, exactly
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

// Each defines PARTS, invocations for a unit, and split(unit, part).
#if defined(Q4_K) || defined(Q5_K) || defined(Q6_K)
#include "lib/split_superblocks.glsl"
#else
#include "lib/split_blocks.glsl"
#endif

void main() {
  uint stride = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  for (uint i = gl_GlobalInvocationID.x; i < n_units * PARTS; i += stride) split(i / PARTS, i % PARTS);
}
