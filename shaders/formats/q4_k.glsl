// Q4_K: value = d scale q - dmin minimum, q four bits, scale and minimum six, one a block (lib/six_bit_scales.glsl).
// A super-block of eight blocks: 32 words of quants as in Q4_0, four of scales.
#define HAS_NIBBLES
#define HAS_MINIMA
#define MIDDLE 8.0
#include "lib/six_bit_scales.glsl"
#ifndef SPLITS
struct Weights {
  uvec4 nibbles;
  uvec4 scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scale_words[block / 8]); }

uint first_words(Weights w) { return w.nibbles.x | w.scale.x; }

vec2 scales_of(Weights w, uint block) { return scale_and_minimum(w.scale, block); }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = w.nibbles & 0x0f0f0f0fu;
  second = (w.nibbles >> 4) & 0x0f0f0f0fu;
}
#else
#include "lib/split_nibbles.glsl"
#define PARTS 4
// d, dmin, 12 bytes of scales, low bits
void split(uint unit, uint part) {
  uint from = 144 * unit, superblock = first_unit + unit, to = 32 * superblock + 8 * part;
  split_nibbles(from + 16 + 32 * part, to, to + 4);
  if (part == 0) split_six_bit_scales(from, 4 * superblock);
}
#endif
