// Stores activations in the form that the constant QUANTIZES of the including file says, beside float32: 1: q16 blocks
// (q16.glsl, which says the rest), 2: the values themselves, rounded to float16, row by row, for matmul; 3: the same in
// the order of fragments.glsl, for matmul_narrow, QUANTIZES >> 8 being FRAGMENTS; 0: none.
#include "q16.glsl"

const uint STORED = QUANTIZES & 255;
const uint FRAGMENTS = QUANTIZES >> 8;
#define FRAGMENT_WORD(word) Q16_WORD(word)
#include "fragments.glsl"

void store_halves(uint row, uint blocks_per_row, uint block, uint four, vec4 v) {
  if (STORED == 2) {
    uint word = 16 * (row * blocks_per_row + block) + 2 * four;
    Q16_WORD(word) = packHalf2x16(v.xy);
    Q16_WORD(word + 1) = packHalf2x16(v.zw);
  }
  if (STORED == 3) store_fragments(row, blocks_per_row, block, four, v);
}

#ifdef PLAIN
void store_form_of_block(uint row, uint blocks_per_row, uint block, vec4 v[8]) {
  if (STORED == 1) store_q16_block(row, blocks_per_row, block, v);
  if (STORED > 1) {
    [[unroll]] for (uint k = 0; k < 8; k++) store_halves(row, blocks_per_row, block, k, v[k]);
  }
}
#else
void store_form(uint row, uint blocks_per_row, uint block, vec4 v) {
  if (STORED == 1) store_q16(row, blocks_per_row, block, v);
  if (STORED > 1) store_halves(row, blocks_per_row, block, gl_SubgroupInvocationID % 8, v);
}
#endif
