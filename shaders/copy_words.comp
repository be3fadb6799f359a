// copy_words: copies words between buffers, such as logits to host memory or raw tensors from staging
// bindings: source target
// constants: local_size
// push: n_words target_word source_word
// dispatch: x = words / local_size (a smaller dispatch loops)
// numerics: copies
#version 450
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push {
  uint n_words;
  uint target_word;
  uint source_word;
};
layout(std430, binding = 0) readonly buffer Source { uint source[]; };
layout(std430, binding = 1) writeonly buffer Target { uint target[]; };

void main() {
  uint stride = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  for (uint i = gl_GlobalInvocationID.x; i < n_words; i += stride) target[target_word + i] = source[source_word + i];
}
