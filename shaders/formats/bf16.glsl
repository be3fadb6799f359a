// BF16: plain numbers, the upper halves of float32, two a word.
#define HAS_NUMBERS
struct Weights {
  uvec4 words[4];
};

Weights load_weights(uint block) {
  Weights w;
  [[unroll]] for (uint i = 0; i < 4; i++) w.words[i] = quants[4 * block + i];
  return w;
}

float value(uint block, uint i) {
  uint pair = quants[4 * block + i / 8][(i / 2) % 4];
  return uintBitsToFloat(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
}

vec4 weight_values(Weights w, uint i) {
  uint first = w.words[i / 2][2 * (i % 2)], second = w.words[i / 2][2 * (i % 2) + 1];
  return uintBitsToFloat(uvec4(first << 16, first & 0xffff0000u, second << 16, second & 0xffff0000u));
}

#ifdef NEEDS_HALVES
uvec4 eight_halves(Weights w, uint i) {
  uvec4 v = w.words[i];
  uvec4 even = v << 16, odd = v & 0xffff0000u;
  return pack_eight(uintBitsToFloat(uvec4(even.x, odd.x, even.y, odd.y)),
                    uintBitsToFloat(uvec4(even.z, odd.z, even.w, odd.w)));
}
#endif
