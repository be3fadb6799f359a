// Q5_1: value = d q + m, q five bits. Quants as in Q5_0; a block's d and m are a word.
#define HAS_MINIMA
#define MIDDLE 16.0
#include "lib/high_bits.glsl"
#ifndef SPLITS
layout(std430, binding = 0) readonly buffer QuantsByOne { uint high_bits[]; }; // the same plane

struct Weights {
  uvec4 nibbles;
  uint high;
  uint scale;
};

Weights load_weights(uint block) {
  uint first = block / 8 * 40;
  return Weights(quants[first / 4 + block % 8], high_bits[first + 32 + block % 8], scales[block]);
}

uint first_words(Weights w) { return w.nibbles.x | w.high | w.scale; }

vec2 scales_of(Weights w, uint block) { return unpackHalf2x16(w.scale); }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = w.nibbles & 0x0f0f0f0fu;
  second = (w.nibbles >> 4) & 0x0f0f0f0fu;
  add_high_bits(w.high, first, second);
}
#else
#define PARTS 8
// of a block: d and m, a word of high bits, low bits
void split(uint unit, uint part) {
  uint from = 6 * (8 * unit + part), to = 40 * (first_unit + unit);
  [[unroll]] for (uint i = 0; i < 4; i++) quants[to + 4 * part + i] = raw[from + 2 + i];
  quants[to + 32 + part] = transposed_bits(raw[from + 1]);
  scales[8 * (first_unit + unit) + part] = raw[from];
}
#endif
