// Q5_K: value = d scale q - dmin minimum, q five bits, scale and minimum six, one a block (lib/six_bit_scales.glsl).
// A super-block of eight blocks: 32 words of low bits as in Q4_0, eight of high bits; four of scales.
#define HAS_MINIMA
#define MIDDLE 16.0
#include "lib/six_bit_scales.glsl"
#include "lib/high_bits.glsl"
#ifndef SPLITS
layout(std430, binding = 0) readonly buffer QuantsByOne { uint high_bits[]; }; // the same plane

struct Weights {
  uvec4 nibbles;
  uint high;
  uvec4 scale;
};

Weights load_weights(uint block) {
  uint first = block / 8 * 40;
  return Weights(quants[first / 4 + block % 8], high_bits[first + 32 + block % 8], scale_words[block / 8]);
}

uint first_words(Weights w) { return w.nibbles.x | w.high | w.scale.x; }

vec2 scales_of(Weights w, uint block) { return scale_and_minimum(w.scale, block); }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = w.nibbles & 0x0f0f0f0fu;
  second = (w.nibbles >> 4) & 0x0f0f0f0fu;
  add_high_bits(w.high, first, second);
}
#else
#include "lib/split_nibbles.glsl"
#define PARTS 4
// d, dmin, 12 bytes of scales, 32 of high bits, low bits
void split(uint unit, uint part) {
  uint from = 176 * unit, superblock = first_unit + unit, to = 40 * superblock;
  split_nibbles(from + 48 + 32 * part, to + 8 * part, to + 8 * part + 4);
  [[unroll]] for (uint i = 0; i < 2; i++) quants[to + 32 + 2 * part + i] = gathered_bits(from + 16, 2 * part + i);
  if (part == 0) split_six_bit_scales(from, 4 * superblock);
}
#endif
