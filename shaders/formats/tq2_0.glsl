// TQ2_0: value = d (q - 1), q two bits. A super-block of eight blocks: 16 words of quants (lib/bit_pairs.glsl); d as
// float32.
#define CENTRE 1.0
#ifndef SPLITS
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 pairs[]; }; // the same plane

struct Weights {
  uvec2 pairs;
  uint d;
};

Weights load_weights(uint block) { return Weights(pairs[block], scales[block / 8]); }

uint first_words(Weights w) { return w.pairs.x | w.d; }

vec2 scales_of(Weights w, uint block) { return vec2(uintBitsToFloat(w.d)); }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = (uvec4(w.pairs.x) >> uvec4(0, 2, 4, 6)) & 0x03030303u;
  second = (uvec4(w.pairs.y) >> uvec4(0, 2, 4, 6)) & 0x03030303u;
}
#else
#include "lib/bit_pairs.glsl"
#define PARTS 8
// 64 bytes of quants, of which 32 are for four blocks, d
void split(uint unit, uint part) {
  uint from = 66 * unit, superblock = first_unit + unit;
  [[unroll]] for (uint i = 0; i < 2; i++) {
    quants[16 * superblock + 2 * part + i] = gathered_pairs(from + part / 4 * 32 + 16 * i, part % 4 * 2);
  }
  if (part == 0) scales[superblock] = floatBitsToUint(unpackHalf2x16(raw_half(from + 64)).x);
}
#endif
