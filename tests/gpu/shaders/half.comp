#version 450
// values[i] = two 16-bit floats, 4 * i and 4 * i + 2: needs shaderFloat16.
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
layout(local_size_x = 32) in;
layout(set = 0, binding = 0) writeonly buffer Values { uint values[]; };

void main() {
  uint i = gl_GlobalInvocationID.x;
  values[i] = packFloat2x16(f16vec2(float16_t(i) * float16_t(4.0), float16_t(i) * float16_t(4.0) + float16_t(2.0)));
}
