// Q4_1: value = d q + m, q four bits. Quants as in Q4_0; a block's d and m are a word.
#define HAS_NIBBLES
#define HAS_MINIMA
#define MIDDLE 8.0
#ifndef SPLITS
struct Weights {
  uvec4 nibbles;
  uint scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scales[block]); }

uint first_words(Weights w) { return w.nibbles.x | w.scale; }

vec2 scales_of(Weights w, uint block) { return unpackHalf2x16(w.scale); }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = w.nibbles & 0x0f0f0f0fu;
  second = (w.nibbles >> 4) & 0x0f0f0f0fu;
}
#else
#define PARTS 2
void split(uint unit, uint part) {
  uint from = 5 * (2 * unit + part), block = 2 * (first_unit + unit) + part;
  [[unroll]] for (uint i = 0; i < 4; i++) quants[4 * block + i] = raw[from + 1 + i];
  scales[block] = raw[from];
}
#endif
