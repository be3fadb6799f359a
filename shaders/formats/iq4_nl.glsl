// IQ4_NL: value = d t[q], q four bits, t a table of 16 signed bytes (lib/nibble_values.glsl). Two blocks' scales are a
// word.
#define IS_SIGNED
const uvec4 NIBBLE_VALUES = uvec4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
#include "lib/nibble_values.glsl"
#ifndef SPLITS
struct Weights {
  uvec4 nibbles;
  uint scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scales[block >> 1]); }

uint first_words(Weights w) { return w.nibbles.x | w.scale; }

vec2 scales_of(Weights w, uint block) { return unpackHalf2x16(w.scale >> (16 * (block & 1))).xx; }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) { unpack_values(w.nibbles, first, second); }
#else
#define PARTS 1
void split(uint unit, uint part) {
  uint from = 36 * unit, pair = first_unit + unit;
  [[unroll]] for (uint i = 0; i < 2; i++) split_neighbours(from + 18 * i + 2, 8 * pair + 4 * i);
  scales[pair] = raw_half(from) | raw_half(from + 18) << 16;
}
#endif
