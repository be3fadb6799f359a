// A block's word of high bits: bit 8 j + w is that of value 4 w + j.
#ifndef SPLITS
void add_high_bits(uint high, inout uvec4 first, inout uvec4 second) {
  first |= (uvec4(high) << uvec4(4, 3, 2, 1)) & 0x10101010u;
  second |= (uvec4(high) >> uvec4(0, 1, 2, 3)) & 0x10101010u;
}
#else
// From a word whose bit i is that of value i.
uint transposed_bits(uint bits) {
  uint word = 0;
  [[unroll]] for (uint w = 0; w < 8; w++) {
    word |= ((((bits >> (4 * w)) & 15) * 0x00204081u) & 0x01010101u) << w; // four bits, each to a byte of its own
  }
  return word;
}

// From bit `shift` of each of 32 bytes.
uint gathered_bits(uint from, uint shift) {
  uint word = 0;
  [[unroll]] for (uint w = 0; w < 8; w++) word |= ((raw_word(from + 4 * w) >> shift) & 0x01010101u) << w;
  return word;
}
#endif
