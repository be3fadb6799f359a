// IQ2_XS: value = d / 4 (scale + 1/2) times a value of a grid (lib/grid_of_eight.glsl), scale four bits, one for 16 values.
// A super-block of eight blocks: 16 words of quants, of 16 bits for eight values: nine bits of a place in the grid, seven
// of signs; two of scales, a byte a block; d / 4 as float32.
#define IS_SIGNED
#define HAS_HALF_SCALES
#define CODEBOOK_WORDS 256
#ifndef SPLITS
#include "lib/codebook.glsl"
#include "lib/grid_of_eight.glsl"
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 block_words[]; }; // the same plane

struct Weights {
  uvec2 words;
  uvec2 scale; // the word that holds the block's byte, d
};

Weights load_weights(uint block) {
  uint first = CODEBOOK_WORDS + block / 8 * 3;
  return Weights(block_words[block], uvec2(scales[first + block % 8 / 4], scales[first + 2]));
}

uint first_words(Weights w) { return w.words.x | w.scale.x; }

vec2 scales_of(Weights w, uint block) {
  uint both = w.scale.x >> (block % 4 * 8);
  return uintBitsToFloat(w.scale.y) * (vec2(both & 15, (both >> 4) & 15) + 0.5);
}

uvec2 eight_values(uint bits) { return eight_of_grid(bits & 511, eight_signs(bits >> 9)); }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = uvec4(eight_values(w.words.x), eight_values(w.words.x >> 16));
  second = uvec4(eight_values(w.words.y), eight_values(w.words.y >> 16));
}
#else
#define PARTS 8
// d, quants, scales
void split(uint unit, uint part) {
  uint from = 74 * unit, superblock = first_unit + unit, to = CODEBOOK_WORDS + 3 * superblock;
  [[unroll]] for (uint i = 0; i < 2; i++) {
    quants[16 * superblock + 2 * part + i] = raw_word(from + 2 + 8 * part + 4 * i);
  }
  if (part < 2) scales[to + part] = raw_word(from + 66 + 4 * part);
  if (part == 2) scales[to + 2] = floatBitsToUint(unpackHalf2x16(raw_half(from)).x / 4.0);
}
#endif
