// Activations as float16 in the order in which matmul_narrow reads them, for matrices (float16 B) of MATRIX_K columns and
// MATRIX_N tokens. FRAGMENTS packs MATRIX_N, MATRIX_K and LANES, the blocks that lie side by side. The values of a block
// are in the order of pairs_of_half (lib/pairs.glsl). They go to FRAGMENT_WORD(word).
//
// LANES = 1: each matrix is one piece of memory, a token behind the other.
// More: lanes hold the elements of matrices, and each reads its own tokens' blocks, of LANES blocks the one that it holds
// of rows too, a quarter of a block (a uvec4) at a time: of each group of blocks, quarter by quarter, token by token.
const uint FRAGMENT_TOKENS = FRAGMENTS != 0 ? FRAGMENTS & 255 : 1;
const uint FRAGMENT_K = FRAGMENTS != 0 ? (FRAGMENTS >> 8) & 255 : 1;
const uint FRAGMENT_LANES = FRAGMENTS != 0 ? FRAGMENTS >> 16 : 1;

uint fragment_groups(uint blocks) { return (blocks + FRAGMENT_LANES - 1) / FRAGMENT_LANES; }

// LANES = 1: first word of matrix `fragment` of a block, for the tokens of a tile
uint fragment_word(uint blocks, uint tile, uint block, uint fragment) {
  return ((tile * blocks + block) * (32 / FRAGMENT_K) + fragment) * (FRAGMENT_TOKENS * FRAGMENT_K / 2);
}

// More: the uvec4 with a quarter of a token's block
uint fragment_quarter(uint blocks, uint row, uint block, uint quarter) {
  uint group = row / FRAGMENT_TOKENS * fragment_groups(blocks) + block / FRAGMENT_LANES;
  return ((group * 4 + quarter) * FRAGMENT_TOKENS + row % FRAGMENT_TOKENS) * FRAGMENT_LANES + block % FRAGMENT_LANES;
}

void store_pairs(uint row, uint blocks, uint block, uint four, uvec2 pairs) {
  uint order = 4 * four, to;
  if (FRAGMENT_LANES == 1) {
    to = fragment_word(blocks, row / FRAGMENT_TOKENS, block, order / FRAGMENT_K) +
         row % FRAGMENT_TOKENS * (FRAGMENT_K / 2) + order % FRAGMENT_K / 2;
  } else {
    to = 4 * fragment_quarter(blocks, row, block, four / 2) + four % 2 * 2;
  }
  FRAGMENT_WORD(to) = pairs.x;
  FRAGMENT_WORD(to + 1) = pairs.y;
}

// Stores values 4 * four to 4 * four + 3 of a block of a row; with the last block, zeros in place of those that are
// missing beside it.
void store_fragments(uint row, uint blocks, uint block, uint four, vec4 v) {
  store_pairs(row, blocks, block, four, uvec2(packHalf2x16(v.xz), packHalf2x16(v.yw)));
  [[unroll]] for (uint i = 1; i < FRAGMENT_LANES; i++) {
    uint other = block + i;
    if (block == blocks - 1 && other % FRAGMENT_LANES >= i) store_pairs(row, blocks, other, four, uvec2(0));
  }
}
