// IQ4_NL: value = d t[q], q four bits, t a table of 16 signed bytes (lib/iq4_values.glsl). Two blocks' scales are a
// word.
#define IS_SIGNED
#include "lib/iq4_values.glsl"
#ifndef SPLITS
struct Weights {
  uvec4 planes;
  uint scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scales[block >> 1]); }

uint first_words(Weights w) { return w.planes.x | w.scale; }

vec2 scales_of(Weights w, uint block) { return unpackHalf2x16(w.scale >> (16 * (block & 1))).xx; }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) { unpack_values(w.planes, first, second); }
#else
#define PARTS 1
void split(uint unit, uint part) {
  uint from = 36 * unit, pair = first_unit + unit;
  [[unroll]] for (uint i = 0; i < 2; i++) split_nibble_codes(from + 18 * i + 2, 8 * pair + 4 * i);
  scales[pair] = raw_half(from) | raw_half(from + 18) << 16;
}
#endif
