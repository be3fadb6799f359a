// NVFP4: value = scale t[q], q a sign, two bits of exponent and one of mantissa, t twice what they mean
// (lib/nibble_values.glsl), scale a float of eight bits without a sign, one for 16 values. Two blocks' scales are a word.
#define IS_SIGNED
#define HAS_HALF_SCALES
const uvec4 NIBBLE_VALUES = uvec4(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
#include "lib/nibble_values.glsl"
#ifndef SPLITS
struct Weights {
  uvec4 nibbles;
  uint scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scales[block >> 1]); }

uint first_words(Weights w) { return w.nibbles.x | w.scale; }

// half of a float with four bits of exponent and three of mantissa; 0x7f stands for zero
float half_of_float8(uint bits) {
  float small = float(bits & 7) * 0.0009765625;
  float normal = uintBitsToFloat(((bits & 127) << 20) + (119u << 23));
  return bits == 127 ? 0.0 : (bits & 120) == 0 ? small : normal;
}

vec2 scales_of(Weights w, uint block) {
  uint both = w.scale >> (16 * (block & 1));
  return vec2(half_of_float8(both & 255), half_of_float8((both >> 8) & 255));
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) { unpack_values(w.nibbles, first, second); }
#else
#define PARTS 2
// four scales; of each 16 values eight bytes, whose byte j holds values j and j + 8
void split(uint unit, uint part) {
  uint from = 9 * unit, to = 8 * (first_unit + unit) + 4 * part;
  [[unroll]] for (uint i = 0; i < 2; i++) {
    uint four = raw[from + 1 + 4 * part + 2 * i], next = raw[from + 2 + 4 * part + 2 * i];
    quants[to + 2 * i] = joined_nibbles(four & 0x0f0f0f0fu) | joined_nibbles(next & 0x0f0f0f0fu) << 16;
    quants[to + 2 * i + 1] = joined_nibbles((four >> 4) & 0x0f0f0f0fu) | joined_nibbles((next >> 4) & 0x0f0f0f0fu) << 16;
  }
  if (part == 0) scales[first_unit + unit] = raw[from];
}
#endif
