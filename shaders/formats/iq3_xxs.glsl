// IQ3_XXS: value = d / 2 (scale + 1/2) times a value of a grid of four with signs, scale four bits, one a block. A
// super-block of eight blocks: 16 words of quants, a byte for four values; eight of, of seven bits each, signs, scale;
// d / 2 as float32. An entry of the codebook is a word of four bytes.
#define IS_SIGNED
#define CODEBOOK_WORDS 256
#ifndef SPLITS
#include "lib/codebook.glsl"
layout(std430, binding = 0) readonly buffer QuantsByOne { uint sign_words[]; }; // the same plane
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 block_words[]; };

struct Weights {
  uvec2 words;
  uint signs;
  uint d;
};

Weights load_weights(uint block) {
  uint first = block / 8 * 24;
  return Weights(block_words[first / 2 + block % 8], sign_words[first + 16 + block % 8],
                 scales[CODEBOOK_WORDS + block / 8]);
}

uint first_words(Weights w) { return w.words.x | w.signs | w.d; }

vec2 scales_of(Weights w, uint block) { return vec2(uintBitsToFloat(w.d) * (float(w.signs >> 28) + 0.5)); }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  [[unroll]] for (uint k = 0; k < 4; k++) {
    uint a = eight_signs(w.signs >> (k / 2 * 7)) >> (k % 2 * 4), b = eight_signs(w.signs >> (14 + k / 2 * 7)) >> (k % 2 * 4);
    first[k] = with_signs(codebook[bitfieldExtract(w.words.x, int(8 * k), 8)], a);
    second[k] = with_signs(codebook[bitfieldExtract(w.words.y, int(8 * k), 8)], b);
  }
}
#else
#define PARTS 8
// d, quants, signs and scales
void split(uint unit, uint part) {
  uint from = 98 * unit, superblock = first_unit + unit, to = 24 * superblock;
  [[unroll]] for (uint i = 0; i < 2; i++) quants[to + 2 * part + i] = raw_word(from + 2 + 8 * part + 4 * i);
  quants[to + 16 + part] = raw_word(from + 66 + 4 * part);
  if (part == 0) scales[CODEBOOK_WORDS + superblock] = floatBitsToUint(unpackHalf2x16(raw_half(from)).x / 2.0);
}
#endif
