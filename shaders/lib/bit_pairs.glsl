// Splits two bits of each of 16 bytes into a half block's word: bits 8 j + 2 w are those of value 4 w + j.
uint gathered_pairs(uint from, uint shift) {
  uint word = 0;
  [[unroll]] for (uint w = 0; w < 4; w++) word |= ((raw_word(from + 4 * w) >> shift) & 0x03030303u) << (2 * w);
  return word;
}
