// eight_halves: values 8 i to 8 i + 7 of a weight block (lib/weights.glsl) as float16, packed in a uvec4.
uvec4 pack_eight(vec4 a, vec4 b) {
  return uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
}

vec4 unsigned_bytes(uint word) {
  return vec4(word & 0xffu, (word >> 8) & 0xffu, (word >> 16) & 0xffu, word >> 24);
}

uvec4 eight_halves(Weights w, uint block, uint i) {
#if defined(F32)
  return pack_eight(uintBitsToFloat(w.words[2 * i]), uintBitsToFloat(w.words[2 * i + 1]));
#elif defined(F16)
  return w.words[i];
#elif defined(BF16)
  uvec4 v = w.words[i];
  uvec4 even = v << 16, odd = v & 0xffff0000u;
  return pack_eight(uintBitsToFloat(uvec4(even.x, odd.x, even.y, odd.y)),
                    uintBitsToFloat(uvec4(even.z, odd.z, even.w, odd.w)));
#else
  uvec4 first, second;
  unpack(w, first, second);
  uvec4 bytes = i < 2 ? first : second;
  uvec2 words = i % 2 == 0 ? bytes.xy : bytes.zw;
  vec2 pair = scales_of(w, block);
  float scale = pair.x, shift = 0.0;
#if defined(Q8_0) || defined(Q6_K)
  words ^= 0x80808080u; // signed bytes as unsigned ones, 128 higher
  shift = 128.0;
#elif defined(Q4_0)
  shift = 8.0;
#endif
#if defined(Q6_K)
  if (i >= 2) scale = pair.y;
#endif
  vec4 a = scale * (unsigned_bytes(words.x) - shift), b = scale * (unsigned_bytes(words.y) - shift);
#if defined(Q4_1) || defined(Q4_K) || defined(Q5_K)
  a += pair.y;
  b += pair.y;
#endif
  return pack_eight(a, b);
#endif
}
