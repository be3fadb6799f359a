// IQ3_S: value = d (2 scale + 1) times a value of a grid of four with signs, scale four bits, one a block. A super-block of
// eight blocks: 16 words of quants, low bytes of places in the grid for four values each; eight of signs; two of high bits,
// a byte a block; one of scales; d as float32. An entry of the codebook is a word of four bytes.
#define IS_SIGNED
#define CODEBOOK_WORDS 512
#ifndef SPLITS
#include "lib/codebook.glsl"
layout(std430, binding = 0) readonly buffer QuantsByOne { uint sign_words[]; }; // the same plane
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 block_words[]; };
layout(std430, binding = 1) readonly buffer ScalesByFour { uvec4 scale_words[]; };

struct Weights {
  uvec2 words;
  uint signs;
  uvec4 scale;
};

Weights load_weights(uint block) {
  uint first = block / 8 * 24;
  return Weights(block_words[first / 2 + block % 8], sign_words[first + 16 + block % 8],
                 scale_words[CODEBOOK_WORDS / 4 + block / 8]);
}

uint first_words(Weights w) { return w.words.x | w.signs | w.scale.x; }

vec2 scales_of(Weights w, uint block) {
  return vec2(uintBitsToFloat(w.scale.w) * float(2 * bitfieldExtract(w.scale.z, int(block % 8 * 4), 4) + 1));
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  uint high = (block % 8 < 4 ? w.scale.x : w.scale.y) >> (block % 4 * 8);
  [[unroll]] for (uint k = 0; k < 4; k++) {
    uint a = bitfieldExtract(w.words.x, int(8 * k), 8) | ((high >> k) & 1) << 8;
    uint b = bitfieldExtract(w.words.y, int(8 * k), 8) | ((high >> (k + 4)) & 1) << 8;
    first[k] = with_signs(codebook[a], w.signs >> (4 * k));
    second[k] = with_signs(codebook[b], w.signs >> (4 * k + 16));
  }
}
#else
#define PARTS 8
// d, low bytes, high bits, signs, scales
void split(uint unit, uint part) {
  uint from = 110 * unit, superblock = first_unit + unit, to = 24 * superblock;
  [[unroll]] for (uint i = 0; i < 2; i++) quants[to + 2 * part + i] = raw_word(from + 2 + 8 * part + 4 * i);
  quants[to + 16 + part] = raw_word(from + 74 + 4 * part);
  uint first = CODEBOOK_WORDS + 4 * superblock;
  if (part < 3) scales[first + part] = raw_word(from + (part < 2 ? 66 + 4 * part : 106));
  if (part == 3) scales[first + 3] = floatBitsToUint(unpackHalf2x16(raw_half(from)).x);
}
#endif
