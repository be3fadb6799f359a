// IQ4_XS: value = d (scale - 32) t[q], q four bits, t the table of IQ4_NL, scale six bits, one a block. A super-block of
// eight blocks: 32 words of quants; d and the scales' high pairs, their low nibbles.
#define IS_SIGNED
#include "lib/iq4_values.glsl"
#ifndef SPLITS
#include "lib/small_floats.glsl"
layout(std430, binding = 1) readonly buffer ScalesByTwo { uvec2 scale_words[]; };

struct Weights {
  uvec4 planes;
  uvec2 scale;
};

Weights load_weights(uint block) { return Weights(quants[block], scale_words[block / 8]); }

uint first_words(Weights w) { return w.planes.x | w.scale.x; }

vec2 scales_of(Weights w, uint block) {
  uint place = block % 8;
  uint integer = ((w.scale.y >> (4 * place)) & 15u) | ((w.scale.x >> (12 + 2 * place)) & 48u);
  return vec2(unpackHalf2x16(w.scale.x).x * (small_floats(uvec2(integer)).x - 32.0));
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) { unpack_values(w.planes, first, second); }
#else
#define PARTS 8
// d, the scales' high pairs, their low nibbles, quants
void split(uint unit, uint part) {
  uint from = 136 * unit, superblock = first_unit + unit;
  split_nibble_codes(from + 8 + 16 * part, 32 * superblock + 4 * part);
  if (part < 2) scales[2 * superblock + part] = raw[from / 4 + part];
}
#endif
