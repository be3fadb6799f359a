#version 450
// Keeps the device busy for `n_rounds` of arithmetic, below lavapipe's limit of 65,535, and counts its dispatches.
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) buffer Values { uint values[]; };
layout(push_constant) uniform Push { uint n_rounds; };

void main() {
  uint i = gl_GlobalInvocationID.x;
  uint x = i;
  for (uint round = 0u; round < n_rounds; round++) x = 1664525u * x + 1013904223u;
  values[i + 1u] = x;
  if (i == 0u) values[0] += 1u;
}
