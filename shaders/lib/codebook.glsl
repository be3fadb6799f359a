// A format's codebook: the first CODEBOOK_WORDS words of its plane of scales, here in shared memory.
#ifndef SPLITS
#define HAS_TABLE
shared uint codebook[CODEBOOK_WORDS];

void prepare_weights() {
  for (uint i = gl_LocalInvocationIndex; i < CODEBOOK_WORDS; i += gl_WorkGroupSize.x) codebook[i] = scales[i];
  barrier();
}

// Entries of eight values of two bits, two entries a word: values 0-3 and 4-7 as bytes. Where which value lies in an entry
// is in vkllm/formats/codebooks.py.
uvec2 eight_codes(uint i) {
  uint entry = bitfieldExtract(codebook[i / 2], int(i % 2 * 16), 16);
  entry |= entry << 12;
  return uvec2(entry, entry >> 2) & 0x03030303u;
}

// four bits, each at the beginning of a byte of its own
uint four_bits(uint bits) { return ((bits & 15) * 0x00204081u) & 0x01010101u; }

// Bytes above zero, negative where bits are set.
uint with_signs(uint four, uint bits) {
  uint signs = four_bits(bits);
  return (four ^ (signs * 255)) + signs;
}

// Of seven bits the eighth follows: an even number of them is set.
uint eight_signs(uint seven) { return (seven & 127) | (uint(bitCount(seven & 127)) & 1) << 7; }
#endif
