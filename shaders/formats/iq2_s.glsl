// IQ2_S: value = d / 4 (scale + 1/2) times a value of a grid (lib/grid_of_eight.glsl), scale four bits, one for 16 values. A
// super-block of eight blocks: 16 words of quants, two a block, low bytes of four places in the grid, their signs; two of
// high bits, a byte a block; two of scales, the same; d / 4 as float32.
#define IS_SIGNED
#define HAS_HALF_SCALES
#define CODEBOOK_WORDS 512
#ifndef SPLITS
#include "lib/codebook.glsl"
#include "lib/grid_of_eight.glsl"
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 block_words[]; }; // the same plane

struct Weights {
  uvec2 words;
  uvec3 scale; // the words that hold the block's bytes of high bits and of scales, d
};

Weights load_weights(uint block) {
  uint first = CODEBOOK_WORDS + block / 8 * 5, i = first + block % 8 / 4;
  return Weights(block_words[block], uvec3(scales[i], scales[i + 2], scales[first + 4]));
}

uint first_words(Weights w) { return w.words.x | w.scale.x; }

vec2 scales_of(Weights w, uint block) {
  uint both = w.scale.y >> (block % 4 * 8);
  return uintBitsToFloat(w.scale.z) * (vec2(both & 15, (both >> 4) & 15) + 0.5);
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  uint high = w.scale.x >> (block % 4 * 8);
  uvec2 eights[4];
  [[unroll]] for (uint k = 0; k < 4; k++) {
    uint i = bitfieldExtract(w.words.x, int(8 * k), 8) | ((high >> (2 * k)) & 3) << 8;
    eights[k] = eight_of_grid(i, w.words.y >> (8 * k));
  }
  first = uvec4(eights[0], eights[1]);
  second = uvec4(eights[2], eights[3]);
}
#else
#define PARTS 8
// d, low bytes, signs, high bits, scales
void split(uint unit, uint part) {
  uint from = 82 * unit, superblock = first_unit + unit, to = CODEBOOK_WORDS + 5 * superblock;
  [[unroll]] for (uint i = 0; i < 2; i++) {
    quants[16 * superblock + 2 * part + i] = raw_word(from + 2 + 32 * i + 4 * part);
  }
  if (part < 4) scales[to + part] = raw_word(from + 66 + 4 * part);
  if (part == 4) scales[to + 4] = floatBitsToUint(unpackHalf2x16(raw_half(from)).x / 4.0);
}
#endif
