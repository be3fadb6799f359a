// Stores activations in the form that the constant QUANTIZES of the including file says, beside float32: 1: q16 blocks
// (q16.glsl, which says the rest), 2: the values themselves, rounded to float16, row by row, for matmul; 0: none.
#include "q16.glsl"

void store_halves(uint block, uint four, vec4 v) {
  Q16_WORD(16 * block + 2 * four) = packHalf2x16(v.xy);
  Q16_WORD(16 * block + 2 * four + 1) = packHalf2x16(v.zw);
}

#ifdef PLAIN
void store_form_of_block(uint row, uint blocks_per_row, uint block, vec4 v[8]) {
  if (QUANTIZES == 1) store_q16_block(row, blocks_per_row, block, v);
  if (QUANTIZES == 2) {
    [[unroll]] for (uint k = 0; k < 8; k++) store_halves(row * blocks_per_row + block, k, v[k]);
  }
}
#else
void store_form(uint row, uint blocks_per_row, uint block, vec4 v) {
  if (QUANTIZES == 1) store_q16(row, blocks_per_row, block, v);
  if (QUANTIZES == 2) store_halves(row * blocks_per_row + block, gl_SubgroupInvocationID % 8, v);
}
#endif
