// Products of a weight block with an activation block. The including file declares `uvec4 x[]`, `vec2 x_scales[]`
// and BLOCKS, the blocks of a row: q16 blocks (lib/q16.glsl) for quantized weights, plain float32 for the others.
#if defined(Q4_0) || defined(Q4_1) || defined(Q8_0)
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

float product(Weights w, Activations a) {
#if defined(Q8_0)
  uvec4 first = w.words[0], second = w.words[1];
#else
  uvec4 first = w.words[0] & 0x0f0f0f0fu, second = (w.words[0] >> 4) & 0x0f0f0f0fu;
#endif
  int high = dot16(first, a.high[0]) + dot16(second, a.high[1]);
  int low = dot16(first, a.low[0]) + dot16(second, a.low[1]);
  float sum = a.scale.x * float((high << 8) + low);
#if defined(Q4_0)
  return w.scale.x * (sum - 8.0 * a.scale.y);
#elif defined(Q4_1)
  return w.scale.x * sum + w.scale.y * a.scale.y;
#else
  return w.scale.x * sum;
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

float product(Weights w, Activations a) {
  float sum = 0.0;
  [[unroll]] for (uint i = 0; i < 8; i++) sum += dot(weight_values(w, i), a.values[i]);
  return sum;
}
#endif
