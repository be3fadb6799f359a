// Formats whose values are a table of 16: NIBBLE_VALUES, four signed bytes a word. Neighbouring values share a byte of the
// plane, so a table in shared memory of what all bytes mean gives two values at a time.
#ifndef SPLITS
#define HAS_TABLE
shared uint pairs[256];

void prepare_weights() {
  for (uint i = gl_LocalInvocationIndex; i < 256; i += gl_WorkGroupSize.x) {
    uint first = NIBBLE_VALUES[i % 16 / 4] >> (i % 4 * 8), second = NIBBLE_VALUES[i / 64] >> (i / 16 % 4 * 8);
    pairs[i] = (first & 0xffu) | (second & 0xffu) << 8;
  }
  barrier();
}

uvec2 eight_values(uint nibbles) {
  return uvec2(pairs[nibbles & 0xffu] | pairs[(nibbles >> 8) & 0xffu] << 16,
               pairs[(nibbles >> 16) & 0xffu] | pairs[nibbles >> 24] << 16);
}

void unpack_values(uvec4 nibbles, out uvec4 first, out uvec4 second) {
  first = uvec4(eight_values(nibbles.x), eight_values(nibbles.y));
  second = uvec4(eight_values(nibbles.z), eight_values(nibbles.w));
}
#else
// Four nibbles, each in a byte, as two bytes.
uint joined_nibbles(uint nibbles) {
  nibbles |= nibbles >> 4; // bytes 0 and 2 hold two each
  return (nibbles & 0xffu) | ((nibbles >> 8) & 0xff00u);
}

// Splits 16 bytes whose byte j holds values j and j + 16.
void split_neighbours(uint from, uint to) {
  [[unroll]] for (uint i = 0; i < 2; i++) {
    uint four = raw_word(from + 8 * i), next = raw_word(from + 8 * i + 4);
    quants[to + i] = joined_nibbles(four & 0x0f0f0f0fu) | joined_nibbles(next & 0x0f0f0f0fu) << 16;
    quants[to + 2 + i] = joined_nibbles((four >> 4) & 0x0f0f0f0fu) | joined_nibbles((next >> 4) & 0x0f0f0f0fu) << 16;
  }
}
#endif
