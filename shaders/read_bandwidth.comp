// read_bandwidth: reads a buffer once, as fast as the device can; the sums make it read every word
// bindings: source sums
// constants: local_size
// push: n_fours
// dispatch: x = any; invocation i reads every n-th 16 bytes from the i-th on, where n is the number of invocations
// numerics: exact: unsigned sums modulo 2^32, one an invocation
#version 450
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { uint n_fours; };
layout(std430, binding = 0) readonly buffer Source { uvec4 source[]; };
layout(std430, binding = 1) writeonly buffer Sums { uint sums[]; };

void main() {
  uint stride = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  uint i = gl_GlobalInvocationID.x;
  uvec4 sum = uvec4(0);
  for (; i + 7 * stride < n_fours; i += 8 * stride) { // eight loads under way at once
    uvec4 loaded[8];
    [[unroll]] for (uint k = 0; k < 8; k++) loaded[k] = source[i + k * stride];
    [[unroll]] for (uint k = 0; k < 8; k++) sum += loaded[k];
  }
  for (; i < n_fours; i += stride) sum += source[i];
  sums[gl_GlobalInvocationID.x] = sum.x + sum.y + sum.z + sum.w;
}
