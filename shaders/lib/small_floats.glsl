// Integers below 2^23 as floats: they are the low bits of a float between 2^23 and 2^24. Conversions take longer on NVIDIA.
vec2 small_floats(uvec2 integers) { return uintBitsToFloat(integers | 0x4b000000u) - 8388608.0; }
