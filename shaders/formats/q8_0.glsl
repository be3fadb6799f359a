// Q8_0: value = d q, q signed bytes. A block's quants are two uvec4; two blocks' scales are a word.
#define IS_SIGNED
#ifndef SPLITS
struct Weights {
  uvec4 words[2];
  uint scale;
};

Weights load_weights(uint block) {
  Weights w;
  [[unroll]] for (uint i = 0; i < 2; i++) w.words[i] = quants[2 * block + i];
  w.scale = scales[block >> 1];
  return w;
}

uint first_words(Weights w) { return w.words[0].x | w.scale; }

vec2 scales_of(Weights w, uint block) { return unpackHalf2x16(w.scale >> (16 * (block & 1))).xx; }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = w.words[0];
  second = w.words[1];
}
#else
#define PARTS 2
void split(uint unit, uint part) {
  uint from = 68 * unit, pair = first_unit + unit;
  [[unroll]] for (uint i = 0; i < 8; i++) quants[16 * pair + 8 * part + i] = raw_word(from + 34 * part + 2 + 4 * i);
  if (part == 0) scales[pair] = raw_half(from) | raw_half(from + 34) << 16;
}
#endif
