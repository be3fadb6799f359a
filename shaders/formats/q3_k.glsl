// Q3_K: value = d (scale - 32) (q - 4), q three bits, scale six, one for 16 values. The bytes are 32 (q - 4), so that
// the three bits of q - 4 in the plane bring its sign. A super-block of eight blocks: 16 words, two a block, and eight,
// one a block. A byte of these three holds two numbers, the first above, and one or two bits of a third. For four blocks
// two words of scales: bytes of one scale and two bits of the other, its other four bits, d.
#define IS_SIGNED
#define HAS_HALF_SCALES
#ifndef SPLITS
layout(std430, binding = 0) readonly buffer QuantsByOne { uint high_bits[]; }; // the same plane
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 low_bits[]; };
layout(std430, binding = 1) readonly buffer ScalesByTwo { uvec2 scale_words[]; };

struct Weights {
  uvec2 low;
  uint high;
  uvec2 scale;
};

Weights load_weights(uint block) {
  uint first = block / 8 * 24;
  return Weights(low_bits[first / 2 + block % 8], high_bits[first + 16 + block % 8], scale_words[block / 4]);
}

uint first_words(Weights w) { return w.low.x | w.high | w.scale.x; }

vec2 scales_of(Weights w, uint block) {
  uint low = w.scale.x >> (block % 4 * 8), high = w.scale.y >> (block % 4 * 4);
  uvec2 integers = uvec2(low & 63, ((low >> 6) & 3) | ((high << 2) & 60));
  return unpackHalf2x16(w.scale.y).y * (vec2(integers) * 0.03125 - 1.0);
}

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  first = uvec4(w.low.x, w.low.x << 3, w.low.y, w.low.y << 3) & 0xe0e0e0e0u;
  second.xy = uvec2(w.high, w.high << 3) & 0xe0e0e0e0u;
  second.zw = ((w.low << 6) & 0xc0c0c0c0u) | ((uvec2(w.high) << uvec2(5, 4)) & 0x20202020u);
}
#else
#define PARTS 8
uint scale_bits(uint from, uint i) {
  uint low = raw_word(from + i % 8) >> (i / 8 * 4), high = raw_word(from + 8 + i % 4) >> (i / 4 * 2);
  return (low & 15) | (high & 3) << 4;
}

// 32 bytes of high bits, 64 of low bits, of which 32 are for four blocks, 12 of scales, d. Of the scales, low nibbles are
// in bytes 0-7, the last eight above the first; high pairs in bytes 8-11, four in each.
void split(uint unit, uint part) {
  uint from = 110 * unit, superblock = first_unit + unit, to = 24 * superblock;
  uint bits[8]; // of q - 4
  [[unroll]] for (uint w = 0; w < 8; w++) {
    uint low = raw_word(from + 32 + part / 4 * 32 + 4 * w) >> (part % 4 * 2), high = ~raw_word(from + 4 * w) >> part;
    bits[w] = (low & 0x03030303u) | (high & 0x01010101u) << 2;
  }
  [[unroll]] for (uint i = 0; i < 2; i++) {
    quants[to + 2 * part + i] = bits[2 * i] << 5 | bits[2 * i + 1] << 2 | ((bits[6 + i] >> 1) & 0x03030303u);
  }
  quants[to + 16 + part] = bits[4] << 5 | bits[5] << 2 | (bits[6] & 0x01010101u) | (bits[7] & 0x01010101u) << 1;
  if (part > 1) return;
  uint low = 0, high = raw_half(from + 108) << 16; // of four blocks
  [[unroll]] for (uint i = 0; i < 4; i++) {
    uint first = scale_bits(from + 96, 8 * part + 2 * i), second = scale_bits(from + 96, 8 * part + 2 * i + 1);
    low |= (first | (second & 3) << 6) << (8 * i);
    high |= second >> 2 << (4 * i);
  }
  scales[4 * superblock + 2 * part] = low;
  scales[4 * superblock + 2 * part + 1] = high;
}
#endif
