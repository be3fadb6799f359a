// Activations as blocks of 32 integers of 16 bits, split into two planes of signed bytes:
// value = scale * (256 * high + low). A block is 4 uvec4 (high 0-15, high 16-31, low 0-15, low 16-31) and
// a vec2 (scale, scale * sum of the integers). The including file declares `uvec4 y_q16[]`, `vec2 y_scales[]`. Two int8 dot products then give a 16-bit one.
// Plain int8 activations miss the reference log-probabilities by up to 0.2; these by 0.003 (docs/design.md).
#define Q16_LIMIT 32512.0 // 127 * 256, so that the high byte of a rounded value stays in -127..127

void store_q16(uint block, float v[32]) {
  float largest = 0.0;
  for (uint i = 0; i < 32; i++) largest = max(largest, abs(v[i]));
  float inverse = largest > 0.0 ? Q16_LIMIT / largest : 0.0;
  int sum = 0;
  [[unroll]] for (uint part = 0; part < 2; part++) {
    uvec4 high = uvec4(0), low = uvec4(0);
    [[unroll]] for (uint i = 0; i < 16; i++) {
      int q = int(roundEven(v[16 * part + i] * inverse));
      int h = (q + 128) >> 8;
      sum += q;
      high[i / 4] |= uint(h & 0xff) << (8 * (i % 4));
      low[i / 4] |= uint((q - (h << 8)) & 0xff) << (8 * (i % 4));
    }
    y_q16[4 * block + part] = high;
    y_q16[4 * block + 2 + part] = low;
  }
  float scale = largest / Q16_LIMIT;
  y_scales[block] = vec2(scale, scale * float(sum));
}
