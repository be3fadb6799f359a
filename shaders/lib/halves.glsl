// eight_halves: values 8 i to 8 i + 7 of a weight block (lib/weights.glsl) as float16, packed in a uvec4.
uvec4 pack_eight(vec4 a, vec4 b) {
  return uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
}

vec4 unsigned_bytes(uint word) {
  return vec4(word & 0xffu, (word >> 8) & 0xffu, (word >> 16) & 0xffu, word >> 24);
}

uvec4 eight_halves(Weights w, uint i) {
#if defined(F32)
  return pack_eight(uintBitsToFloat(w.words[2 * i]), uintBitsToFloat(w.words[2 * i + 1]));
#elif defined(F16)
  return w.words[i];
#elif defined(BF16)
  uvec4 v = w.words[i];
  uvec4 even = v << 16, odd = v & 0xffff0000u;
  return pack_eight(uintBitsToFloat(uvec4(even.x, odd.x, even.y, odd.y)),
                    uintBitsToFloat(uvec4(even.z, odd.z, even.w, odd.w)));
#elif defined(Q8_0)
  // signed bytes as unsigned ones, 128 higher
  uint first = w.words[i / 2][i % 2 * 2] ^ 0x80808080u, second = w.words[i / 2][i % 2 * 2 + 1] ^ 0x80808080u;
  return pack_eight(w.scale.x * (unsigned_bytes(first) - 128.0), w.scale.x * (unsigned_bytes(second) - 128.0));
#else
  uvec4 nibbles = (i < 2 ? w.words[0] : w.words[0] >> 4) & 0x0f0f0f0fu;
  vec4 first = unsigned_bytes(i % 2 == 0 ? nibbles.x : nibbles.z), second = unsigned_bytes(i % 2 == 0 ? nibbles.y : nibbles.w);
#if defined(Q4_0)
  return pack_eight(w.scale.x * (first - 8.0), w.scale.x * (second - 8.0));
#else
  return pack_eight(w.scale.x * first + w.scale.y, w.scale.x * second + w.scale.y);
#endif
#endif
}
