// MXFP4: value = 2^(e - 128) t[q], q a sign, two bits of exponent and one of mantissa, t twice what they mean
// (lib/nibble_values.glsl). Four blocks' e, a byte each, are a word.
#define IS_SIGNED
#define SHARED_BLOCKS 4
const uvec4 NIBBLE_VALUES = uvec4(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
#include "lib/nibble_values.glsl"
#ifndef SPLITS
struct Weights {
  uvec4 nibbles;
  uint scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scales[block / 4]); }

uint first_words(Weights w) { return w.nibbles.x | w.scale; }

vec2 scales_of(Weights w, uint block) {
  uint e = bitfieldExtract(w.scale, int(block % 4 * 8), 8);
  return vec2(uintBitsToFloat(e < 2 ? 0x200000u << e : (e - 1) << 23));
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) { unpack_values(w.nibbles, first, second); }
#else
#define PARTS 1
// of a block: e, quants
void split(uint unit, uint part) {
  uint from = 68 * unit, to = first_unit + unit, exponents = 0;
  [[unroll]] for (uint i = 0; i < 4; i++) {
    split_neighbours(from + 17 * i + 1, 16 * to + 4 * i);
    exponents |= (raw_word(from + 17 * i) & 0xffu) << (8 * i);
  }
  scales[to] = exponents;
}
#endif
