// IQ1_S: value = d (2 scale + 1) times a value of a grid (lib/grid_of_thirds.glsl), scale three bits, one a block. A
// super-block of eight blocks: eight words of quants, low bytes of four places in the grid; four of, of 16 bits a block,
// their high bits, scale, whether an eighth is subtracted; d / 8 as float32.
#define IS_SIGNED
#define CODEBOOK_WORDS 1024
#ifndef SPLITS
#include "lib/codebook.glsl"
#include "lib/grid_of_thirds.glsl"
layout(std430, binding = 0) readonly buffer QuantsByOne { uint block_words[]; }; // the same plane

struct Weights {
  uint word;
  uvec2 scale; // the word that holds the block's 16 bits, d
};

Weights load_weights(uint block) {
  uint first = CODEBOOK_WORDS + block / 8 * 5;
  return Weights(block_words[block], uvec2(scales[first + block % 8 / 2], scales[first + 4]));
}

uint first_words(Weights w) { return w.word | w.scale.x; }

vec2 scales_of(Weights w, uint block) {
  return vec2(uintBitsToFloat(w.scale.y) * float(2 * bitfieldExtract(w.scale.x, int(block % 2 * 16 + 12), 3) + 1));
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  uint bits = w.scale.x >> (block % 2 * 16);
  uvec2 eights[4];
  [[unroll]] for (uint k = 0; k < 4; k++) {
    uint i = bitfieldExtract(w.word, int(8 * k), 8) | ((bits >> (3 * k)) & 7) << 8;
    eights[k] = eight_of_grid(i, (bits & 0x8000u) != 0);
  }
  first = uvec4(eights[0], eights[1]);
  second = uvec4(eights[2], eights[3]);
}
#else
#define PARTS 8
// d, low bytes, 16 bits a block
void split(uint unit, uint part) {
  uint from = 50 * unit, superblock = first_unit + unit, to = CODEBOOK_WORDS + 5 * superblock;
  quants[8 * superblock + part] = raw_word(from + 2 + 4 * part);
  if (part < 4) scales[to + part] = raw_word(from + 34 + 4 * part);
  if (part == 4) scales[to + 4] = floatBitsToUint(unpackHalf2x16(raw_half(from)).x / 8.0);
}
#endif
