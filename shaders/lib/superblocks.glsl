// The K formats: super-blocks of eight blocks, whose planes are described in vkllm/formats/superblocks.py.
// A super-block's quants are its blocks' nibbles, a uvec4 each, then their high bits: a word each in Q5_K, two in Q6_K.
#if defined(Q4_K)
#define SUPERBLOCK_WORDS 32
#elif defined(Q5_K)
#define SUPERBLOCK_WORDS 40
layout(std430, binding = 0) readonly buffer QuantsByOne { uint high_bits[]; }; // the same plane
#else
#define SUPERBLOCK_WORDS 48
layout(std430, binding = 0) readonly buffer QuantsByTwo { uvec2 high_bits[]; };
#endif
#ifndef Q6_K
layout(std430, binding = 1) readonly buffer ScalesByFour { uvec4 scale_words[]; };
#endif

struct Weights {
  uvec4 nibbles;
#if defined(Q5_K)
  uint high;
#elif defined(Q6_K)
  uvec2 high;
#endif
#if defined(Q6_K)
  uvec2 scale; // the word that holds the block's two integers, d
#else
  uvec4 scale; // the super-block's d and m, and all its integers
#endif
};

Weights load_weights(uint block) {
  Weights w;
#if defined(Q4_K)
  w.nibbles = quants[block];
#else
  uint first = block / 8 * SUPERBLOCK_WORDS;
  w.nibbles = quants[first / 4 + block % 8];
#endif
#if defined(Q5_K)
  w.high = high_bits[first + 32 + block % 8];
#elif defined(Q6_K)
  w.high = high_bits[first / 2 + 16 + block % 8];
#endif
#if defined(Q6_K)
  w.scale = uvec2(scales[block / 8 * 5 + block % 8 / 2], scales[block / 8 * 5 + 4]);
#else
  w.scale = scale_words[block / 8];
#endif
  return w;
}

// a word of each cache line
uint first_words(Weights w) {
#if defined(Q4_K)
  return w.nibbles.x | w.scale.x;
#else
  return w.nibbles.x | w.high.x | w.scale.x;
#endif
}

// the scale of the bytes, and what is added to all of them, or in Q6_K the second half's scale
vec2 scales_of(Weights w, uint block) {
#if defined(Q6_K)
  int pair = int(w.scale.x >> (block % 2 * 16));
  return uintBitsToFloat(w.scale.y) * vec2(bitfieldExtract(pair, 0, 8), bitfieldExtract(pair, 8, 8));
#else
  int shift = int(block % 8 * 4);
  uvec2 low = bitfieldExtract(w.scale.yz, shift, 4);
  uvec2 high = uvec2(bitfieldExtract(w.scale.w, shift, 2), bitfieldExtract(w.scale.w, shift + 2, 2));
  vec2 integers = vec2(low | high << 4);
  return unpackHalf2x16(w.scale.x) * vec2(integers.x, -integers.y);
#endif
}

// Q6_K's bytes are 4 (q - 32): the high bits in the plane are those of q - 32, so they bring its sign.
void unpack(Weights w, out uvec4 first, out uvec4 second) {
#if defined(Q6_K)
  first = ((w.nibbles << 2) & 0x3c3c3c3cu) | ((uvec4(w.high.x) << uvec4(6, 4, 2, 0)) & 0xc0c0c0c0u);
  second = ((w.nibbles >> 2) & 0x3c3c3c3cu) | ((uvec4(w.high.y) << uvec4(6, 4, 2, 0)) & 0xc0c0c0c0u);
#else
  first = w.nibbles & 0x0f0f0f0fu;
  second = (w.nibbles >> 4) & 0x0f0f0f0fu;
#if defined(Q5_K)
  first |= (uvec4(w.high) << uvec4(4, 3, 2, 1)) & 0x10101010u;
  second |= (uvec4(w.high) >> uvec4(0, 1, 2, 3)) & 0x10101010u;
#endif
#endif
}

float value(uint block, uint i) {
  Weights w = load_weights(block);
  uvec4 first, second;
  unpack(w, first, second);
  vec2 scale = scales_of(w, block);
  uint word = (i < 16 ? first : second)[i / 4 % 4];
  float integer = float(bitfieldExtract(int(word), int(i % 4 * 8), 8));
#if defined(Q6_K)
  return (i < 16 ? scale.x : scale.y) * integer;
#else
  return scale.x * integer + scale.y;
#endif
}
