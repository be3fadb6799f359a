// pairs_of_half: values 16 * half to 16 * half + 15 of a weight block (formats/format.glsl) times WEIGHT_SCALE as float16.
// Of each four it has values 0 and 2, then 1 and 3, so that bytes become float16 without being moved: a byte in the low
// bits of 1024 is 1024 more. Scales are rounded to float16 too; WEIGHT_SCALE keeps those of small weights from being
// subnormal, and weights must be below 255.
#ifdef HAS_NUMBERS
const float WEIGHT_SCALE = 1.0;

void pairs_of_half(Weights w, uint block, uint half_, bool is_there, out f16vec2 pairs[8]) {
  [[unroll]] for (uint i = 0; i < 4; i++) {
    vec4 v = is_there ? weight_values(w, 4 * half_ + i) : vec4(0.0);
    pairs[2 * i] = f16vec2(v.xz);
    pairs[2 * i + 1] = f16vec2(v.yw);
  }
}
#else
const float WEIGHT_SCALE = 256.0;
#ifdef CENTRE
const float WEIGHT_CENTRE = 1024.0 + CENTRE;
#elif defined(MIDDLE)
const float WEIGHT_CENTRE = 1024.0 + MIDDLE; // so that scales and minima, rounded, do not cancel out
#elif defined(IS_SIGNED)
const float WEIGHT_CENTRE = 1152.0;
#else
const float WEIGHT_CENTRE = 1024.0;
#endif

#ifdef HAS_NIBBLES
// A number in bits 4-7 of 1024 is 16 times as much more.
f16vec2 two_of_word(uint word, uint half_) {
  f16vec2 v = unpackFloat2x16((word & (half_ == 0 ? 0x000f000fu : 0x00f000f0u)) | 0x64006400u);
  return half_ == 0 ? v - f16vec2(WEIGHT_CENTRE) : fma(v, f16vec2(0.0625), f16vec2(960.0 - WEIGHT_CENTRE));
}
#else
f16vec2 two_of_word(uint word, uint half_) {
  word &= 0x00ff00ffu;
#ifdef IS_SIGNED
  word ^= 0x64806480u; // signed bytes as unsigned ones, 128 higher
#else
  word |= 0x64006400u;
#endif
  return unpackFloat2x16(word) - f16vec2(WEIGHT_CENTRE);
}
#endif

void pairs_of_half(Weights w, uint block, uint half_, bool is_there, out f16vec2 pairs[8]) {
#ifdef HAS_NIBBLES
  uvec4 words = w.nibbles;
#else
  uvec4 halves[2];
  unpack(w, block, halves[0], halves[1]);
  uvec4 words = halves[half_];
#endif
  Scales scale = scales_of(w, block);
  float factor = scale.x;
#ifdef HAS_HALF_SCALES
  if (half_ == 1) factor = scale.y;
#endif
  f16vec2 factors = f16vec2(is_there ? factor * WEIGHT_SCALE : 0.0);
#ifdef HAS_MINIMA
#ifdef HAS_HALF_SCALES
  float minimum = half_ == 0 ? scale.z : scale.w;
#else
  float minimum = scale.y;
#endif
  f16vec2 minima = f16vec2(is_there ? (minimum + MIDDLE * factor) * WEIGHT_SCALE : 0.0);
#endif
  [[unroll]] for (uint i = 0; i < 4; i++) {
    f16vec2 even = two_of_word(words[i], half_), odd = two_of_word(words[i] >> 8, half_);
#ifdef HAS_MINIMA
    pairs[2 * i] = fma(even, factors, minima);
    pairs[2 * i + 1] = fma(odd, factors, minima);
#else
    pairs[2 * i] = even * factors;
    pairs[2 * i + 1] = odd * factors;
#endif
  }
}
#endif
