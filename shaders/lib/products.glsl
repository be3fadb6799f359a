// Products of weight block `block` with an activation block. The including file declares `uvec4 x[]`, `vec2 x_scales[]`
// and BLOCKS, the blocks of a row: q16 blocks (lib/q16.glsl) for quantized weights, plain float32 for the others.
#ifndef HAS_NUMBERS
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
  unpack(w, block, first, second);
  Scales scale = scales_of(w, block);
#if defined(SOFT_DOT) && defined(HAS_HALF_SCALES) && defined(HAS_MINIMA)
  return a.scale.x * (scaled_half_sum(first, scale.x, scale.z, a.high[0], a.low[0]) +
                      scaled_half_sum(second, scale.y, scale.w, a.high[1], a.low[1]));
#elif defined(HAS_HALF_SCALES)
  // a half block's sum is below 2^26, and its float exact where the bytes have four bits or end with zeros
  float first_sum = half_sum(first, a.high[0], a.low[0]);
  float second_sum = half_sum(second, a.high[1], a.low[1]);
  float sum = a.scale.x * (scale.x * first_sum + scale.y * second_sum);
#ifdef HAS_MINIMA
  float first_ones = a.scale.x * half_sum(uvec4(0x01010101u), a.high[0], a.low[0]);
  sum += scale.z * first_ones + scale.w * (a.scale.y - first_ones);
#endif
  return sum;
#else
  float sum = a.scale.x * block_sum(first, second, a.high[0], a.high[1], a.low[0], a.low[1]);
#if defined(HAS_MINIMA)
  return scale.x * sum + scale.y * a.scale.y;
#elif defined(CENTRE)
  return scale.x * (sum - CENTRE * a.scale.y);
#else
  return scale.x * sum;
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

float product(Weights w, uint block, Activations a) {
  float sum = 0.0;
  [[unroll]] for (uint i = 0; i < 8; i++) sum += dot(weight_values(w, i), a.values[i]);
  return sum;
}
#endif
