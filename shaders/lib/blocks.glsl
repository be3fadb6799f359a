// Formats of plain numbers, and of blocks of 32 values.
#if defined(F32)
#define WEIGHT_WORDS 8
#elif defined(F16) || defined(BF16)
#define WEIGHT_WORDS 4
#elif defined(Q8_0)
#define WEIGHT_WORDS 2
#else
#define WEIGHT_WORDS 1
#endif

struct Weights {
  uvec4 words[WEIGHT_WORDS]; // of the plane of quants
  uint scale; // the word that holds d and, for Q4_1, m
};

Weights load_weights(uint block) {
  Weights w;
  [[unroll]] for (uint i = 0; i < WEIGHT_WORDS; i++) w.words[i] = quants[WEIGHT_WORDS * block + i];
#if defined(Q4_1)
  w.scale = scales[block];
#elif defined(Q4_0) || defined(Q8_0)
  w.scale = scales[block >> 1]; // two blocks' halves
#endif
  return w;
}

// a word of each cache line
uint first_words(Weights w) { return w.words[0].x | w.scale; }

// d and, for Q4_1, m
vec2 scales_of(Weights w, uint block) {
#if defined(Q4_1)
  return unpackHalf2x16(w.scale);
#elif defined(Q4_0) || defined(Q8_0)
  return unpackHalf2x16(w.scale >> (16 * (block & 1))).xx;
#else
  return vec2(1.0);
#endif
}

#if defined(Q4_0) || defined(Q4_1) || defined(Q8_0)
void unpack(Weights w, out uvec4 first, out uvec4 second) {
#if defined(Q8_0)
  first = w.words[0];
  second = w.words[1];
#else
  first = w.words[0] & 0x0f0f0f0fu;
  second = (w.words[0] >> 4) & 0x0f0f0f0fu;
#endif
}
#endif

float value(uint block, uint i) {
#if defined(F32)
  return uintBitsToFloat(quants[8 * block + i / 4][i % 4]);
#elif defined(F16)
  return unpackHalf2x16(quants[4 * block + i / 8][(i / 2) % 4])[i % 2];
#elif defined(BF16)
  uint pair = quants[4 * block + i / 8][(i / 2) % 4];
  return uintBitsToFloat(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
#else
  Weights w = load_weights(block);
  vec2 scale = scales_of(w, block);
#if defined(Q8_0)
  return scale.x * float(bitfieldExtract(int(w.words[i / 16][(i / 4) % 4]), int(8 * (i % 4)), 8));
#else
  uint nibble = (w.words[0][(i / 4) % 4] >> (8 * (i % 4) + (i < 16 ? 0 : 4))) & 15;
#if defined(Q4_0)
  return scale.x * (float(nibble) - 8.0);
#else
  return scale.x * float(nibble) + scale.y;
#endif
#endif
#endif
}
