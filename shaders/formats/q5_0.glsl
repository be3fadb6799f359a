// Q5_0: value = d (q - 16), q five bits. Of eight blocks: 32 words of low bits as in Q4_0, eight of high bits
// (lib/high_bits.glsl); two blocks' scales are a word.
#define CENTRE 16.0
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
  return Weights(quants[first / 4 + block % 8], high_bits[first + 32 + block % 8], scales[block >> 1]);
}

uint first_words(Weights w) { return w.nibbles.x | w.high | w.scale; }

vec2 scales_of(Weights w, uint block) { return unpackHalf2x16(w.scale >> (16 * (block & 1))).xx; }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = w.nibbles & 0x0f0f0f0fu;
  second = (w.nibbles >> 4) & 0x0f0f0f0fu;
  add_high_bits(w.high, first, second);
}
#else
#define PARTS 4
// of a block: d, a word of high bits, low bits
void split(uint unit, uint part) {
  uint from = 176 * unit + 44 * part, to = 40 * (first_unit + unit);
  [[unroll]] for (uint i = 0; i < 8; i++) {
    quants[to + 8 * part + i] = raw_word(from + 22 * (i / 4) + 6 + 4 * (i % 4));
  }
  [[unroll]] for (uint i = 0; i < 2; i++) quants[to + 32 + 2 * part + i] = transposed_bits(raw_word(from + 22 * i + 2));
  scales[4 * (first_unit + unit) + part] = raw_half(from) | raw_half(from + 22) << 16;
}
#endif
