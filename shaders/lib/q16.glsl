// Activations as blocks of 32 integers of 16 bits, each split into two signed bytes:
// value = scale * (256 * high + low). Two int8 dot products then make a 16-bit one.
// A row has four parts of 4 words a block: high bytes of values 0-15, of 16-31, low bytes of 0-15, of 16-31, each
// part for all blocks, so that neighbouring lanes load neighbouring words; and a vec2 a block (scale, scale * sum
// of its integers). They go to `uint y_q16[]` and `vec2 y_scales[]`, or where the including file says.
// Plain int8 activations miss the reference log-probabilities by up to 0.2; these by 0.003 (docs/design.md).
#ifndef Q16_WORD
#define Q16_WORD(word) y_q16[word]
#define Q16_SCALES(block) y_scales[block]
#endif
#define Q16_LIMIT 32512.0 // 127 * 256, so that the high byte of a rounded value stays in -127..127

#ifdef PLAIN
// An invocation stores a block.
void store_q16_block(uint row, uint blocks_per_row, uint block, vec4 v[8]) {
  vec4 sizes = abs(v[0]);
  [[unroll]] for (uint k = 1; k < 8; k++) sizes = max(sizes, abs(v[k]));
  float largest = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
  float factor = largest > 0.0 ? Q16_LIMIT / largest : 0.0;
  int sum = 0;
  [[unroll]] for (uint k = 0; k < 8; k++) {
    ivec4 q = ivec4(roundEven(v[k] * factor));
    ivec4 high = (q + 128) >> 8;
    uvec4 high_bytes = uvec4(high) & 0xffu, low_bytes = uvec4(q - (high << 8)) & 0xffu;
    sum += q.x + q.y + q.z + q.w;
    uint word = ((4 * row + k / 4) * blocks_per_row + block) * 4 + k % 4;
    Q16_WORD(word) = high_bytes.x | high_bytes.y << 8 | high_bytes.z << 16 | high_bytes.w << 24;
    Q16_WORD(word + 8 * blocks_per_row) = low_bytes.x | low_bytes.y << 8 | low_bytes.z << 16 | low_bytes.w << 24;
  }
  float scale = largest / Q16_LIMIT;
  Q16_SCALES(row * blocks_per_row + block) = vec2(scale, scale * float(sum));
}
#else
// Eight neighbouring lanes store a block together, four values each; lane = gl_SubgroupInvocationID % 8.
// Mesa unrolls loops whose counter grows by addition only; a shuffle by a constant is one instruction on AMD, not 17.
void store_q16(uint row, uint blocks_per_row, uint block, vec4 v) {
  uint lane = gl_SubgroupInvocationID % 8;
  vec4 sizes = abs(v);
  float largest = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
  [[unroll]] for (uint i = 0; i < 3; i++) largest = max(largest, subgroupShuffleXor(largest, 1u << i));
  ivec4 q = ivec4(roundEven(v * (largest > 0.0 ? Q16_LIMIT / largest : 0.0)));
  ivec4 high = (q + 128) >> 8;
  uvec4 high_bytes = uvec4(high) & 0xffu, low_bytes = uvec4(q - (high << 8)) & 0xffu;
  int sum = q.x + q.y + q.z + q.w;
  [[unroll]] for (uint i = 0; i < 3; i++) sum += subgroupShuffleXor(sum, 1u << i);

  uint word = ((4 * row + lane / 4) * blocks_per_row + block) * 4 + lane % 4;
  Q16_WORD(word) = high_bytes.x | high_bytes.y << 8 | high_bytes.z << 16 | high_bytes.w << 24;
  Q16_WORD(word + 8 * blocks_per_row) = low_bytes.x | low_bytes.y << 8 | low_bytes.z << 16 | low_bytes.w << 24;
  if (lane == 0) {
    float scale = largest / Q16_LIMIT;
    Q16_SCALES(row * blocks_per_row + block) = vec2(scale, scale * float(sum));
  }
}
#endif
