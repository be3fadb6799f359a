#version 450
// values[i] = 2 * i in 16-bit floats: needs shaderFloat16 and 16-bit storage.
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_shader_16bit_storage : require
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) writeonly buffer Values { float16_t values[]; };

void main() {
  uint i = gl_GlobalInvocationID.x;
  values[i] = float16_t(i) * float16_t(2.0);
}
