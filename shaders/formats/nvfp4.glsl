// NVFP4: value = scale t[q], q a sign, two bits of exponent and one of mantissa, t twice what they mean
// (lib/fp4_values.glsl), scale a float of eight bits without a sign, one for 16 values. Two blocks' scales are a word.
#define IS_SIGNED
#define HAS_HALF_SCALES
#include "lib/fp4_values.glsl"
#ifndef SPLITS
struct Weights {
  uvec4 planes;
  uint scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scales[block >> 1]); }

uint first_words(Weights w) { return w.planes.x | w.scale; }

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

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) { unpack_values(w.planes, first, second); }
#else
#define PARTS 2
// four scales; of each 16 values eight bytes, whose byte j holds values j and j + 8
void split(uint unit, uint part) {
  uint from = 9 * unit, numbers[8];
  [[unroll]] for (uint i = 0; i < 4; i++) {
    uint four = raw[from + 1 + 4 * part + i], to = i / 2 * 4 + i % 2;
    numbers[to] = four;
    numbers[to + 2] = four >> 4;
  }
  split_codes(numbers, 8 * (first_unit + unit) + 4 * part);
  if (part == 0) scales[first_unit + unit] = raw[from];
}
#endif
