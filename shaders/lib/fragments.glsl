// Activations as float16 in the order in which matmul_narrow reads them as matrices (float16 B of MATRIX_K columns and
// MATRIX_N tokens): each matrix is one piece of memory, a token behind the other. FRAGMENTS packs MATRIX_N, MATRIX_K and
// LANES, the blocks that lie side by side: of each, a matrix has MATRIX_K / LANES values, in the order of pairs_of_half
// (lib/pairs.glsl). So a lane that holds the block of a row needs no values from other lanes.
// They go to FRAGMENT_WORD(word).
const uint FRAGMENT_TOKENS = FRAGMENTS != 0 ? FRAGMENTS & 255 : 1;
const uint FRAGMENT_K = FRAGMENTS != 0 ? (FRAGMENTS >> 8) & 255 : 1;
const uint FRAGMENT_LANES = FRAGMENTS != 0 ? FRAGMENTS >> 16 : 1;
const uint FRAGMENT_VALUES = FRAGMENT_K / FRAGMENT_LANES; // of a block in a matrix
const uint FRAGMENTS_OF_BLOCKS = 32 / FRAGMENT_VALUES; // matrices that hold as many blocks as lie side by side

uint fragment_groups(uint blocks) { return (blocks + FRAGMENT_LANES - 1) / FRAGMENT_LANES; }

// first word of matrix `fragment` of a group of blocks, for the tokens of a tile
uint fragment_word(uint blocks, uint tile, uint group, uint fragment) {
  return ((tile * fragment_groups(blocks) + group) * FRAGMENTS_OF_BLOCKS + fragment) *
         (FRAGMENT_TOKENS * FRAGMENT_K / 2);
}

void store_pairs(uint row, uint blocks, uint block, uint four, uvec2 pairs) {
  uint lane = block % FRAGMENT_LANES, order = 4 * four;
  uint to = row % FRAGMENT_TOKENS * (FRAGMENT_K / 2) +
            fragment_word(blocks, row / FRAGMENT_TOKENS, block / FRAGMENT_LANES, order / FRAGMENT_VALUES);
  uint at = order % FRAGMENT_VALUES / 2;
  FRAGMENT_WORD(to + lane + FRAGMENT_LANES * at) = pairs.x;
  FRAGMENT_WORD(to + lane + FRAGMENT_LANES * (at + 1)) = pairs.y;
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
