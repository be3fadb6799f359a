// Q4_0: value = d (q - 8), q four bits. A block's quants are a uvec4, whose byte j holds values j and j + 16; two
// blocks' scales are a word.
#define HAS_NIBBLES
#define CENTRE 8.0
#ifndef SPLITS
struct Weights {
  uvec4 nibbles;
  uint scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scales[block >> 1]); }

uint first_words(Weights w) { return w.nibbles.x | w.scale; }

vec2 scales_of(Weights w, uint block) { return unpackHalf2x16(w.scale >> (16 * (block & 1))).xx; }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = w.nibbles & 0x0f0f0f0fu;
  second = (w.nibbles >> 4) & 0x0f0f0f0fu;
}
#else
#define PARTS 1
void split(uint unit, uint part) {
  uint from = 36 * unit, pair = first_unit + unit;
  [[unroll]] for (uint i = 0; i < 8; i++) quants[8 * pair + i] = raw_word(from + 18 * (i / 4) + 2 + 4 * (i % 4));
  scales[pair] = raw_half(from) | raw_half(from + 18) << 16;
}
#endif
