// Q2_K: value = d scale q - dmin minimum, q two bits, scale and minimum four, one for 16 values. A super-block of eight
// blocks: 16 words of quants (lib/bit_pairs.glsl); four with a byte for 16 values, the scale below the minimum; d and dmin.
#define HAS_HALF_SCALES
#define HAS_MINIMA
#define MIDDLE 2.0
#define Scales vec4
#ifndef SPLITS
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 pairs[]; }; // the same plane

struct Weights {
  uvec2 pairs;
  uvec2 scale; // the word that holds the block's two bytes, d and dmin
};

Weights load_weights(uint block) {
  uint first = block / 8 * 5;
  return Weights(pairs[block], uvec2(scales[first + block % 8 / 2], scales[first + 4]));
}

uint first_words(Weights w) { return w.pairs.x | w.scale.x; }

vec4 scales_of(Weights w, uint block) {
  uint bytes = w.scale.x >> (block % 2 * 16);
  uvec4 integers = (uvec4(bytes) >> uvec4(0, 8, 4, 12)) & 15u;
  return (unpackHalf2x16(w.scale.y) * vec2(1.0, -1.0)).xxyy * vec4(integers);
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = (uvec4(w.pairs.x) >> uvec4(0, 2, 4, 6)) & 0x03030303u;
  second = (uvec4(w.pairs.y) >> uvec4(0, 2, 4, 6)) & 0x03030303u;
}
#else
#include "lib/bit_pairs.glsl"
#define PARTS 8
// 16 bytes of scales, 64 of quants, of which 32 are for four blocks, d, dmin
void split(uint unit, uint part) {
  uint from = 84 * unit, superblock = first_unit + unit;
  [[unroll]] for (uint i = 0; i < 2; i++) {
    quants[16 * superblock + 2 * part + i] = gathered_pairs(from + 16 + part / 4 * 32 + 16 * i, part % 4 * 2);
  }
  if (part < 5) scales[5 * superblock + part] = raw[from / 4 + (part < 4 ? part : 20)];
}
#endif
