// MXFP4: value = 2^(e - 128) t[q], q a sign, two bits of exponent and one of mantissa, t twice what they mean
// (lib/fp4_values.glsl). Four blocks' e, a byte each, are a word.
#define IS_SIGNED
#define SHARED_BLOCKS 4
#include "lib/fp4_values.glsl"
#ifndef SPLITS
struct Weights {
  uvec4 planes;
  uint scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scales[block / 4]); }

uint first_words(Weights w) { return w.planes.x | w.scale; }

vec2 scales_of(Weights w, uint block) {
  int e = int((w.scale >> (block % 4 * 8)) & 255);
  return vec2(intBitsToFloat(max((e - 1) << 23, (e + 1) << 21))); // of 0 and 1 the latter: not normalized
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) { unpack_values(w.planes, first, second); }
#else
#define PARTS 1
// of a block: e, quants
void split(uint unit, uint part) {
  uint from = 68 * unit, to = first_unit + unit, exponents = 0;
  [[unroll]] for (uint i = 0; i < 4; i++) {
    split_nibble_codes(from + 17 * i + 1, 16 * to + 4 * i);
    exponents |= (raw_word(from + 17 * i) & 0xffu) << (8 * i);
  }
  scales[to] = exponents;
}
#endif
