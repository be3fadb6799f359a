// Quants as planes of bits: of the 32 values of a block, a word holds one bit, bit 8 j + w that of value 4 w + j. So one
// bitwise operation works on all of a block's values, and no table needs to be looked up.
#ifndef SPLITS
// Joins fields of some bits that lie in `low` with those that lie in `high`, which come above them: of the two words with
// fields twice as wide, the one with the fields of the lower halves, marked by `mask`, and the other.
#define JOINED_LOWER(low, high, bits, mask) (((low) & (mask)) | (((high) << (bits)) & ~(mask)))
#define JOINED_UPPER(low, high, bits, mask) ((((low) >> (bits)) & (mask)) | ((high) & ~(mask)))

// From planes 0-3 as nibbles: word w has those of values 4 w + j, and above them of values 16 + 4 w + j.
uvec4 joined_nibbles(uvec4 planes) {
  uvec2 even = JOINED_LOWER(planes.xz, planes.yw, 1, 0x55555555u), odd = JOINED_UPPER(planes.xz, planes.yw, 1, 0x55555555u);
  uvec2 low = uvec2(even.x, odd.x), high = uvec2(even.y, odd.y);
  return uvec4(JOINED_LOWER(low, high, 2, 0x33333333u), JOINED_UPPER(low, high, 2, 0x33333333u));
}

// Nibbles, as of joined_nibbles, as the low and the high halves of bytes.
void join_bytes(uvec4 low, uvec4 high, out uvec4 first, out uvec4 second) {
  first = JOINED_LOWER(low, high, 4, 0x0f0f0f0fu);
  second = JOINED_UPPER(low, high, 4, 0x0f0f0f0fu);
}
#else
// Splits a block of 32 numbers of four bits, given as words whose bytes end with values 4 w + j. CODES says which four
// bits stand for each of the 16.
void split_codes(uint numbers[8], uint to) {
  uvec4 found = uvec4(0), planes = uvec4(0);
  [[unroll]] for (uint w = 0; w < 8; w++) found |= ((uvec4(numbers[w]) >> uvec4(0, 1, 2, 3)) & 0x01010101u) << w;
  [[unroll]] for (uint number = 0; number < 16; number++) {
    uvec4 bits = (uvec4(number) >> uvec4(0, 1, 2, 3)) & 1, code = (uvec4(CODES[number]) >> uvec4(0, 1, 2, 3)) & 1;
    uvec4 equal = found ^ (bits - 1);
    planes |= uvec4(equal.x & equal.y & equal.z & equal.w) & (0 - code);
  }
  [[unroll]] for (uint k = 0; k < 4; k++) quants[to + k] = planes[k];
}

// Splits 16 bytes whose byte j holds values j and j + 16.
void split_nibble_codes(uint from, uint to) {
  uint numbers[8];
  [[unroll]] for (uint i = 0; i < 4; i++) {
    numbers[i] = raw_word(from + 4 * i);
    numbers[i + 4] = numbers[i] >> 4;
  }
  split_codes(numbers, to);
}
#endif
