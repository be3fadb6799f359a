// dot4: the sum of four products of signed bytes, packed in two words.
#ifdef SOFT_DOT
int dot4(uint a, uint b) {
  int sum = 0;
  for (int i = 0; i < 32; i += 8) sum += bitfieldExtract(int(a), i, 8) * bitfieldExtract(int(b), i, 8);
  return sum;
}
#else
int dot4(uint a, uint b) { return dotPacked4x8EXT(int(a), int(b)); }
#endif

int dot16(uvec4 a, uvec4 b) { return dot4(a.x, b.x) + dot4(a.y, b.y) + dot4(a.z, b.z) + dot4(a.w, b.w); }
