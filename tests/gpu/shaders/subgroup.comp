#version 450
// values[i] = the size of the subgroup that ran invocation i.
#extension GL_KHR_shader_subgroup_basic : require
layout(local_size_x = 128) in;
layout(set = 0, binding = 0) writeonly buffer Values { uint values[]; };

void main() { values[gl_GlobalInvocationID.x] = gl_SubgroupSize; }
