// Eight numbers in 16 bytes: block floating point. They share the exponent of the largest; each has 15 bits, the sign
// included. A half of a word holds a number, and in its lowest bit one of the eight bits of the exponent.
// vkllm/model/shards/shared_exponent.py does the same, to the last bit.
const uint LEAST_EXPONENT = 14u; // so that no factor is denormal; smaller numbers are 0

uvec4 packed_eight(vec4 a, vec4 b) {
  uvec4 most = max(floatBitsToUint(a) & 0x7fffffffu, floatBitsToUint(b) & 0x7fffffffu); // as integers: NaN counts
  uint exponent = max(max(max(most.x, most.y), max(most.z, most.w)) >> 23, LEAST_EXPONENT);
  float scale = uintBitsToFloat((267u - exponent) << 23);
  uvec4 x = uvec4(ivec4(min(roundEven(a * scale), 16383.0))), y = uvec4(ivec4(min(roundEven(b * scale), 16383.0)));
  uvec4 bits = uvec4(exponent) >> uvec4(0, 1, 2, 3);
  return (x & 0x7fffu) << 1 | y << 17 | bits & 1u | (bits >> 4 & 1u) << 16;
}

// Their factor; NaN if any of them was infinite or NaN.
float factor_of_eight(uvec4 four) {
  uvec4 bits = (four & 1u | four >> 12 & 16u) << uvec4(0, 1, 2, 3);
  uint exponent = bits.x | bits.y | bits.z | bits.w;
  return uintBitsToFloat(exponent == 255u ? 0x7fc00000u : exponent - 13u << 23);
}

vec4 first_of_eight(uvec4 four) { return vec4(ivec4(four << 16) >> 17) * factor_of_eight(four); }
vec4 last_of_eight(uvec4 four) { return vec4(ivec4(four) >> 17) * factor_of_eight(four); }
