#version 450
// after[i] = 3 * before[i + shift] + step: each dispatch needs all of the one before it.
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint SHIFT = 33;
layout(set = 0, binding = 0) readonly buffer Before { uint before[]; };
layout(set = 0, binding = 1) writeonly buffer After { uint after[]; };
layout(push_constant) uniform Push { uint step; };

void main() {
  uint i = gl_GlobalInvocationID.x;
  after[i] = 3u * before[(i + SHIFT) % uint(before.length())] + step;
}
