// Sums of products of signed bytes, packed four a word, with q16 integers, 256 * high + low (lib/q16.glsl).
//   half_sum(w, high, low)                16 products
//   block_sum(w0, w1, high0, high1, ...)  32 products, of the halves 0 and 1
#ifdef SOFT_DOT
// In float32, where no GPU multiplies slowly, as many do 32-bit integers. Products of 4-bit weights add up exactly.
vec4 signed_bytes(uint word) {
  int w = int(word);
  return vec4(bitfieldExtract(w, 0, 8), bitfieldExtract(w, 8, 8), bitfieldExtract(w, 16, 8), w >> 24);
}

float half_sum(uvec4 w, uvec4 high, uvec4 low) {
  float sum = 0.0;
  [[unroll]] for (uint i = 0; i < 4; i++) {
    sum += dot(signed_bytes(w[i]), 256.0 * signed_bytes(high[i]) + signed_bytes(low[i]));
  }
  return sum;
}

float block_sum(uvec4 w0, uvec4 w1, uvec4 high0, uvec4 high1, uvec4 low0, uvec4 low1) {
  return half_sum(w0, high0, low0) + half_sum(w1, high1, low1);
}

// Of products with factor * byte + added. With a sum of the activations besides, an RX 7900 would spill registers.
float scaled_half_sum(uvec4 w, float factor, float added, uvec4 high, uvec4 low) {
  float sum = 0.0;
  [[unroll]] for (uint i = 0; i < 4; i++) {
    sum += dot(factor * signed_bytes(w[i]) + added, 256.0 * signed_bytes(high[i]) + signed_bytes(low[i]));
  }
  return sum;
}
#else
int dot4(uint a, uint b) { return dotPacked4x8EXT(int(a), int(b)); }

int dot16(uvec4 a, uvec4 b) { return dot4(a.x, b.x) + dot4(a.y, b.y) + dot4(a.z, b.z) + dot4(a.w, b.w); }

float half_sum(uvec4 w, uvec4 high, uvec4 low) { return float((dot16(w, high) << 8) + dot16(w, low)); }

float block_sum(uvec4 w0, uvec4 w1, uvec4 high0, uvec4 high1, uvec4 low0, uvec4 low1) {
  int high = dot16(w0, high0) + dot16(w1, high1);
  int low = dot16(w0, low0) + dot16(w1, low1);
  return float((high << 8) + low);
}
#endif
