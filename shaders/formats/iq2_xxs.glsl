// IQ2_XXS: value = d / 4 (scale + 1/2) times a value of a grid (lib/grid_of_eight.glsl), scale four bits, one a block. A
// super-block of eight blocks: 16 words of quants, two a block, four places in the grid and, of seven bits each, their
// signs, scale; d / 4 as float32.
#define IS_SIGNED
#define CODEBOOK_WORDS 128
#ifndef SPLITS
#include "lib/codebook.glsl"
#include "lib/grid_of_eight.glsl"
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 block_words[]; }; // the same plane

struct Weights {
  uvec2 words;
  uint d;
};

Weights load_weights(uint block) { return Weights(block_words[block], scales[CODEBOOK_WORDS + block / 8]); }

uint first_words(Weights w) { return w.words.x | w.d; }

vec2 scales_of(Weights w, uint block) { return vec2(uintBitsToFloat(w.d) * (float(w.words.y >> 28) + 0.5)); }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  uvec2 eights[4];
  [[unroll]] for (uint k = 0; k < 4; k++) {
    eights[k] = eight_of_grid(bitfieldExtract(w.words.x, int(8 * k), 8), eight_signs(w.words.y >> (7 * k)));
  }
  first = uvec4(eights[0], eights[1]);
  second = uvec4(eights[2], eights[3]);
}
#else
#define PARTS 8
// d, quants
void split(uint unit, uint part) {
  uint from = 66 * unit, superblock = first_unit + unit;
  [[unroll]] for (uint i = 0; i < 2; i++) {
    quants[16 * superblock + 2 * part + i] = raw_word(from + 2 + 8 * part + 4 * i);
  }
  if (part == 0) scales[CODEBOOK_WORDS + superblock] = floatBitsToUint(unpackHalf2x16(raw_half(from)).x / 4.0);
}
#endif
