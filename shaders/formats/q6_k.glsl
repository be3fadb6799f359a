// Q6_K: value = d scale (q - 32), q six bits, scale a signed byte, one for 16 values. The bytes are 4 (q - 32), which
// take one operation less to make than q - 32. A super-block of eight blocks: 32 words of low bits as in Q4_0, 16 of high
// bits, those of q - 32, so that they bring its sign; four of scales and d / 4.
#define IS_SIGNED
#define HAS_HALF_SCALES
#ifndef SPLITS
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 high_bits[]; }; // the same plane

struct Weights {
  uvec4 nibbles;
  uvec2 high;
  uvec2 scale; // the word that holds the block's two integers, d
};

Weights load_weights(uint block) {
  uint first = block / 8 * 48;
  Weights w;
  w.nibbles = quants[first / 4 + block % 8];
  w.high = high_bits[first / 2 + 16 + block % 8];
  w.scale = uvec2(scales[block / 8 * 5 + block % 8 / 2], scales[block / 8 * 5 + 4]);
  return w;
}

uint first_words(Weights w) { return w.nibbles.x | w.high.x | w.scale.x; }

vec2 scales_of(Weights w, uint block) {
  int pair = int(w.scale.x >> (block % 2 * 16));
  return uintBitsToFloat(w.scale.y) * vec2(bitfieldExtract(pair, 0, 8), bitfieldExtract(pair, 8, 8));
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = ((w.nibbles << 2) & 0x3c3c3c3cu) | ((uvec4(w.high.x) << uvec4(6, 4, 2, 0)) & 0xc0c0c0c0u);
  second = ((w.nibbles >> 2) & 0x3c3c3c3cu) | ((uvec4(w.high.y) << uvec4(6, 4, 2, 0)) & 0xc0c0c0c0u);
}
#else
#include "lib/bit_pairs.glsl"
#include "lib/split_nibbles.glsl"
#define PARTS 4
// 128 bytes of low bits, of which 64 are for two and two blocks, 64 of high bits, of which 32 are for four; scales, d
void split(uint unit, uint part) {
  uint from = 210 * unit, superblock = first_unit + unit, to = 48 * superblock;
  uint low_block = part / 2 * 4 + part % 2, high_block = low_block + 2; // of the low and of the high nibbles
  split_nibbles(from + 32 * part, to + 4 * low_block, to + 4 * high_block);
  [[unroll]] for (uint i = 0; i < 4; i++) {
    uint pairs = gathered_pairs(from + 128 + part / 2 * 32 + i % 2 * 16, part % 2 * 2 + i / 2 * 4);
    quants[to + 32 + 2 * (low_block + i / 2 * 2) + i % 2] = pairs ^ 0xaaaaaaaau;
  }
  scales[5 * superblock + part] = raw_word(from + 192 + 4 * part);
  if (part == 0) scales[5 * superblock + 4] = floatBitsToUint(unpackHalf2x16(raw_half(from + 208)).x / 4.0);
}
#endif
