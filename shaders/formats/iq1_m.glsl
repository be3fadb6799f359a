// IQ1_M: value = d (2 scale + 1) times a value of a grid (lib/grid_of_thirds.glsl), scale three bits, one for 16 values. A
// super-block of eight blocks: eight words of quants, low bytes of four places in the grid; four of high bits, of four
// bits for eight values: three of the place, whether an eighth is subtracted; two of, of 16 bits for two blocks, four
// scales and four bits of the float16 d.
#define IS_SIGNED
#define HAS_HALF_SCALES
#define CODEBOOK_WORDS 1024
#ifndef SPLITS
#include "lib/codebook.glsl"
#include "lib/grid_of_thirds.glsl"
layout(std430, binding = 0) readonly buffer QuantsByOne { uint block_words[]; }; // the same plane

struct Weights {
  uint word;
  uvec3 scale; // the word that holds the block's high bits, the two words of scales
};

Weights load_weights(uint block) {
  uint first = CODEBOOK_WORDS + block / 8 * 6;
  return Weights(block_words[block], uvec3(scales[first + block % 8 / 2], scales[first + 4], scales[first + 5]));
}

uint first_words(Weights w) { return w.word | w.scale.x; }

vec2 scales_of(Weights w, uint block) {
  uvec2 low = (w.scale.yz >> 12) & 15u, high = w.scale.yz >> 28;
  float d = unpackHalf2x16(low.x | high.x << 4 | low.y << 8 | high.y << 12).x / 8.0;
  uint bits = (block % 8 < 4 ? w.scale.y : w.scale.z) >> (block % 4 / 2 * 16 + block % 2 * 6);
  return d * vec2(uvec2(bits & 7, (bits >> 3) & 7) * 2 + 1);
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  uint bits = w.scale.x >> (block % 2 * 16);
  uvec2 eights[4];
  [[unroll]] for (uint k = 0; k < 4; k++) {
    uint four = bits >> (4 * k);
    eights[k] = eight_of_grid(bitfieldExtract(w.word, int(8 * k), 8) | (four & 7) << 8, (four & 8) != 0);
  }
  first = uvec4(eights[0], eights[1]);
  second = uvec4(eights[2], eights[3]);
}
#else
#define PARTS 8
// low bytes, high bits, scales and d
void split(uint unit, uint part) {
  uint from = 14 * unit, superblock = first_unit + unit;
  quants[8 * superblock + part] = raw[from + part];
  if (part < 6) scales[CODEBOOK_WORDS + 6 * superblock + part] = raw[from + 8 + part];
}
#endif
