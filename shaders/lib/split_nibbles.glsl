// Splits 32 bytes whose low nibbles are a block and whose high ones are another: byte j of a block's words holds values
// j and j + 16.
void split_nibbles(uint from, uint low_to, uint high_to) {
  [[unroll]] for (uint i = 0; i < 4; i++) {
    uint first = raw_word(from + 4 * i), second = raw_word(from + 16 + 4 * i);
    quants[low_to + i] = (first & 0x0f0f0f0fu) | ((second & 0x0f0f0f0fu) << 4);
    quants[high_to + i] = ((first >> 4) & 0x0f0f0f0fu) | (second & 0xf0f0f0f0u);
  }
}
