// Q3_K: value = d (scale - 32) (q - 4), q three bits, scale six, one for 16 values. The bytes are 32 (q - 4), so that
// the high bits in the plane, those of q - 4, bring its sign. A super-block of eight blocks: 16 words of low bits
// (lib/bit_pairs.glsl), eight of high bits (lib/high_bits.glsl); the scales' low nibbles, their high pairs, d / 32.
#define IS_SIGNED
#define HAS_HALF_SCALES
#ifndef SPLITS
layout(std430, binding = 0) readonly buffer QuantsByOne { uint high_bits[]; }; // the same plane
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 low_bits[]; };
layout(std430, binding = 1) readonly buffer ScalesByFour { uvec4 scale_words[]; };

struct Weights {
  uvec2 low;
  uint high;
  uvec4 scale;
};

Weights load_weights(uint block) {
  uint first = block / 8 * 24;
  return Weights(low_bits[first / 2 + block % 8], high_bits[first + 16 + block % 8], scale_words[block / 8]);
}

uint first_words(Weights w) { return w.low.x | w.high | w.scale.x; }

vec2 scales_of(Weights w, uint block) {
  int shift = int(block % 8 * 4);
  uint low = (block % 8 < 4 ? w.scale.x : w.scale.y) >> (block % 4 * 8);
  uvec2 integers = uvec2(low & 15, bitfieldExtract(low, 4, 4)) |
                   uvec2(bitfieldExtract(w.scale.z, shift, 2), bitfieldExtract(w.scale.z, shift + 2, 2)) << 4;
  return uintBitsToFloat(w.scale.w) * (vec2(integers) - 32.0);
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = (uvec4(w.low.x << 5, w.low.x << 3, w.low.x << 1, w.low.x >> 1) & 0x60606060u) |
          ((uvec4(w.high) << uvec4(7, 6, 5, 4)) & 0x80808080u);
  second = (uvec4(w.low.y << 5, w.low.y << 3, w.low.y << 1, w.low.y >> 1) & 0x60606060u) |
           ((uvec4(w.high) << uvec4(3, 2, 1, 0)) & 0x80808080u);
}
#else
#include "lib/bit_pairs.glsl"
#include "lib/high_bits.glsl"
#define PARTS 8
// 32 bytes of high bits, 64 of low bits, of which 32 are for four blocks, 12 of scales, d. Of the scales, low nibbles are
// in bytes 0-7, the last eight above the first; high pairs in bytes 8-11, four in each.
void split(uint unit, uint part) {
  uint from = 110 * unit, superblock = first_unit + unit, to = 24 * superblock;
  [[unroll]] for (uint i = 0; i < 2; i++) {
    quants[to + 2 * part + i] = gathered_pairs(from + 32 + part / 4 * 32 + 16 * i, part % 4 * 2);
  }
  quants[to + 16 + part] = ~gathered_bits(from, part);
  if (part > 0) return;
  uvec3 words = uvec3(raw_word(from + 96), raw_word(from + 100), raw_word(from + 104));
  uvec3 joined = uvec3(0);
  [[unroll]] for (uint i = 0; i < 8; i++) {
    uint byte = words[i / 4] >> (i % 4 * 8);
    joined.xy |= uvec2(byte & 15, (byte >> 4) & 15) << (4 * i);
    [[unroll]] for (uint k = 0; k < 2; k++) {
      uint scale = 2 * i + k;
      joined.z |= ((words.z >> (scale % 4 * 8 + scale / 4 * 2)) & 3) << (2 * scale);
    }
  }
  [[unroll]] for (uint i = 0; i < 3; i++) scales[4 * superblock + i] = joined[i];
  scales[4 * superblock + 3] = floatBitsToUint(unpackHalf2x16(raw_half(from + 108)).x / 32.0);
}
#endif
