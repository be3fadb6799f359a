// Products of weight block `block` with an activation block. The including file declares `uvec4 x[]`, `vec2 x_scales[]`
// and BLOCKS, the blocks of a row: q16 blocks (lib/q16.glsl) for quantized weights, plain float32 for the others.
#if !defined(F32) && !defined(F16) && !defined(BF16)
#include "dot4.glsl"

struct Activations {
  uvec4 high[2];
  uvec4 low[2];
  vec2 scale;
};

Activations load_activations(uint row, uint block) {
  uint first = 4 * row * BLOCKS + block;
  Activations a;
  a.high[0] = x[first];
  a.high[1] = x[first + BLOCKS];
  a.low[0] = x[first + 2 * BLOCKS];
  a.low[1] = x[first + 3 * BLOCKS];
  a.scale = x_scales[row * BLOCKS + block];
  return a;
}

float product(Weights w, uint block, Activations a) {
  uvec4 first, second;
  unpack(w, first, second);
  vec2 scale = scales_of(w, block);
#if defined(Q6_K)
  // a half block's sum is below 2^26 and divisible by 4, so its float is exact
  float first_sum = half_sum(first, a.high[0], a.low[0]);
  float second_sum = half_sum(second, a.high[1], a.low[1]);
  return a.scale.x * (scale.x * first_sum + scale.y * second_sum);
#else
  float sum = a.scale.x * block_sum(first, second, a.high[0], a.high[1], a.low[0], a.low[1]);
#if defined(Q4_0)
  return scale.x * (sum - 8.0 * a.scale.y);
#elif defined(Q8_0)
  return scale.x * sum;
#else
  return scale.x * sum + scale.y * a.scale.y;
#endif
#endif
}
#else
struct Activations {
  vec4 values[8];
};

Activations load_activations(uint row, uint block) {
  Activations a;
  [[unroll]] for (uint i = 0; i < 8; i++) a.values[i] = uintBitsToFloat(x[8 * (row * BLOCKS + block) + i]);
  return a;
}

vec4 weight_values(Weights w, uint i) {
#if defined(F32)
  return uintBitsToFloat(w.words[i]);
#else
  uint first = w.words[i / 2][2 * (i % 2)], second = w.words[i / 2][2 * (i % 2) + 1];
#if defined(F16)
  return vec4(unpackHalf2x16(first), unpackHalf2x16(second));
#else
  return uintBitsToFloat(uvec4(first << 16, first & 0xffff0000u, second << 16, second & 0xffff0000u));
#endif
#endif
}

float product(Weights w, uint block, Activations a) {
  float sum = 0.0;
  [[unroll]] for (uint i = 0; i < 8; i++) sum += dot(weight_values(w, i), a.values[i]);
  return sum;
}
#endif
