// F16: plain numbers, two a word.
#define HAS_NUMBERS
struct Weights {
  uvec4 words[4];
};

Weights load_weights(uint block) {
  Weights w;
  [[unroll]] for (uint i = 0; i < 4; i++) w.words[i] = quants[4 * block + i];
  return w;
}

float value(uint block, uint i) { return unpackHalf2x16(quants[4 * block + i / 8][(i / 2) % 4])[i % 2]; }

vec4 weight_values(Weights w, uint i) {
  uint first = w.words[i / 2][2 * (i % 2)], second = w.words[i / 2][2 * (i % 2) + 1];
  return vec4(unpackHalf2x16(first), unpackHalf2x16(second));
}

#ifdef NEEDS_HALVES
uvec4 eight_halves(Weights w, uint i) { return w.words[i]; }
#endif
