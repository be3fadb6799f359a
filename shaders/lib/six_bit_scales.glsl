// Scales and minima of Q4_K and Q5_K: six bits each, times d and dmin. Of a super-block, four words: d and dmin; then for
// each block, at bits 4 block, low four bits of its scale; of its minimum; the scale's high two bits below the minimum's.
#ifndef SPLITS
#include "small_floats.glsl"
layout(std430, binding = 1) readonly buffer ScalesByFour { uvec4 scale_words[]; };

vec2 scale_and_minimum(uvec4 words, uint block) {
  uvec3 of_block = words.yzw >> (block % 8 * 4);
  uvec2 integers = (of_block.xy & 15u) | ((uvec2(of_block.z) << uvec2(4, 2)) & 48u);
  vec2 scales = small_floats(integers);
  return unpackHalf2x16(words.x) * vec2(scales.x, -scales.y);
}
#else
// Of bytes 4-15 in the file, six-bit scales are bits 0-5 of bytes 0-3 and minima of bytes 4-7; four more of each have
// their low bits in bytes 8-11 and their high bits above the first ones.
void split_six_bit_scales(uint from, uint to) {
  uvec4 words = uvec4(raw_word(from), raw_word(from + 4), raw_word(from + 8), raw_word(from + 12));
  uvec3 nibbles = uvec3(0);
  [[unroll]] for (uint block = 0; block < 4; block++) {
    uvec3 bytes = words.yzw >> (8 * block);
    uvec3 low = uvec3(bytes.xy & 15, ((bytes.x >> 4) & 3) | (bytes.y >> 2) & 12);
    uvec3 high = uvec3(bytes.z & 15, (bytes.z >> 4) & 15, ((bytes.x >> 6) & 3) | (bytes.y >> 4) & 12);
    nibbles |= low << (4 * block) | high << (4 * block + 16);
  }
  scales[to] = words.x;
  [[unroll]] for (uint i = 0; i < 3; i++) scales[to + 1 + i] = nibbles[i];
}
#endif
