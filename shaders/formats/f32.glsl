// F32: plain numbers, one a word.
#define HAS_NUMBERS
struct Weights {
  uvec4 words[8];
};

Weights load_weights(uint block) {
  Weights w;
  [[unroll]] for (uint i = 0; i < 8; i++) w.words[i] = quants[8 * block + i];
  return w;
}

float value(uint block, uint i) { return uintBitsToFloat(quants[8 * block + i / 4][i % 4]); }

vec4 weight_values(Weights w, uint i) { return uintBitsToFloat(w.words[i]); }

#ifdef NEEDS_HALVES
uvec4 eight_halves(Weights w, uint i) {
  return pack_eight(uintBitsToFloat(w.words[2 * i]), uintBitsToFloat(w.words[2 * i + 1]));
}
#endif
