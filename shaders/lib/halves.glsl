// halves_of: the values of a weight block (formats/format.glsl) as float16, eight packed in each uvec4.
#ifdef HAS_NUMBERS
void halves_of(Weights w, uint block, out uvec4 halves[4]) {
  [[unroll]] for (uint i = 0; i < 4; i++) halves[i] = eight_halves(w, i);
}
#else
vec4 unsigned_bytes(uint word) {
  return vec4(word & 0xffu, (word >> 8) & 0xffu, (word >> 16) & 0xffu, word >> 24);
}

void halves_of(Weights w, uint block, out uvec4 halves[4]) {
  uvec4 bytes[2];
  unpack(w, block, bytes[0], bytes[1]);
  Scales scale = scales_of(w, block);
  [[unroll]] for (uint i = 0; i < 4; i++) {
    uvec2 words = i % 2 == 0 ? bytes[i / 2].xy : bytes[i / 2].zw;
    float factor = scale.x, centre = 0.0;
#ifdef IS_SIGNED
    words ^= 0x80808080u; // signed bytes as unsigned ones, 128 higher
    centre = 128.0;
#endif
#ifdef CENTRE
    centre += CENTRE;
#endif
#ifdef HAS_HALF_SCALES
    if (i >= 2) factor = scale.y;
#endif
    vec4 a = factor * (unsigned_bytes(words.x) - centre), b = factor * (unsigned_bytes(words.y) - centre);
#ifdef HAS_MINIMA
#ifdef HAS_HALF_SCALES
    float minimum = i < 2 ? scale.z : scale.w;
#else
    float minimum = scale.y;
#endif
    a += minimum;
    b += minimum;
#endif
    halves[i] = pack_eight(a, b);
  }
}
#endif
