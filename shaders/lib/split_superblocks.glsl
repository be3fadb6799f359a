// Splits a super-block of a K format. A part is two of its blocks, whose low bits share 32 bytes in the file.
// Byte offsets in the file are Q4_K: d 0, dmin 2, scales 4, low bits 16; Q5_K: d 0, dmin 2, scales 4, high bits 16,
// low bits 48; Q6_K: low bits 0, high bits 128, scales 192, d 208. Planes: vkllm/formats/superblocks.py.
#define PARTS 4
#if defined(Q4_K)
#define RAW_BYTES 144
#define LOW_BYTE 16
#define PLANE_WORDS 32
#elif defined(Q5_K)
#define RAW_BYTES 176
#define LOW_BYTE 48
#define PLANE_WORDS 40
#else
#define RAW_BYTES 210
#define LOW_BYTE 0
#define PLANE_WORDS 48
#endif

// A Q6_K super-block may begin in the middle of a word.
uint raw_word(uint from) {
  return from % 4 == 0 ? raw[from / 4] : (raw[from / 4] >> 16) | (raw[from / 4 + 1] << 16);
}

#if defined(Q6_K)
// High bits, those of q - 32: words 0-7 of the file are for four blocks, `shift` chooses which.
void split_high_bits(uint from, uint shift, uint to) {
  [[unroll]] for (uint half_block = 0; half_block < 2; half_block++) {
    uint word = 0;
    [[unroll]] for (uint w = 0; w < 4; w++) {
      word |= (((raw_word(from + 16 * half_block + 4 * w) >> shift) & 0x03030303u) ^ 0x02020202u) << (2 * w);
    }
    quants[to + half_block] = word;
  }
}

void split_scales(uint from, uint to, uint part) {
  scales[to + part] = raw_word(from + 192 + 4 * part);
  uint d = raw[(from + 208) / 4] >> (from % 4 == 0 ? 0 : 16);
  if (part == 0) scales[to + 4] = floatBitsToUint(unpackHalf2x16(d).x / 4.0);
}
#else
void split_high_bits(uint from, uint shift, uint to) {
  uint word = 0;
  [[unroll]] for (uint w = 0; w < 8; w++) word |= ((raw_word(from + 4 * w) >> shift) & 0x01010101u) << w;
  quants[to] = word;
}

// Of bytes 0-11, six-bit scales are bits 0-5 of bytes 0-3 and minima of bytes 4-7; four more of each have their low
// bits in bytes 8-11 and their high bits above the first ones.
void split_scales(uint from, uint to, uint part) {
  if (part > 0) return;
  uvec4 words = uvec4(raw_word(from), raw_word(from + 4), raw_word(from + 8), raw_word(from + 12));
  uvec3 nibbles = uvec3(0);
  [[unroll]] for (uint block = 0; block < 4; block++) {
    uvec3 bytes = words.yzw >> (8 * block);
    uvec3 low = uvec3(bytes.xy & 15, ((bytes.x >> 4) & 3) | (bytes.y >> 2) & 12);
    uvec3 high = uvec3(bytes.z & 15, (bytes.z >> 4) & 15, ((bytes.x >> 6) & 3) | (bytes.y >> 4) & 12);
    nibbles |= low << (4 * block) | high << (4 * block + 16);
  }
  scales[to] = words.x;
  [[unroll]] for (uint i = 0; i < 3; i++) scales[to + 1 + i] = nibbles[i];
}
#endif

void split(uint unit, uint part) {
  uint from = unit * RAW_BYTES;
  uint to = (first_unit + unit) * PLANE_WORDS;
#if defined(Q6_K)
  uint low_block = part / 2 * 4 + part % 2, high_block = low_block + 2; // of the low and of the high nibbles
#else
  uint low_block = 2 * part, high_block = low_block + 1;
#endif
  [[unroll]] for (uint i = 0; i < 4; i++) {
    uint first = raw_word(from + LOW_BYTE + 32 * part + 4 * i), second = raw_word(from + LOW_BYTE + 32 * part + 16 + 4 * i);
    quants[to + 4 * low_block + i] = (first & 0x0f0f0f0fu) | ((second & 0x0f0f0f0fu) << 4);
    quants[to + 4 * high_block + i] = ((first >> 4) & 0x0f0f0f0fu) | (second & 0xf0f0f0f0u);
  }
#if defined(Q6_K)
  uint high_bits = from + 128 + part / 2 * 32;
  split_high_bits(high_bits, part % 2 * 2, to + 32 + 2 * low_block);
  split_high_bits(high_bits, part % 2 * 2 + 4, to + 32 + 2 * high_block);
  split_scales(from, (first_unit + unit) * 5, part);
#else
#if defined(Q5_K)
  split_high_bits(from + 16, low_block, to + 32 + low_block);
  split_high_bits(from + 16, high_block, to + 32 + high_block);
#endif
  split_scales(from, (first_unit + unit) * 4, part);
#endif
}
