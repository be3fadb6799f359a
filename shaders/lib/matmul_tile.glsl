// The product of a tile of weights with a tile of activations by cooperative matrices. The including file has the
// constants LOCAL_SIZE, COLUMNS, TILE_TOKENS, SUBGROUPS_ALONG_ROWS, SUBGROUPS_ALONG_TOKENS, MATRIX_M, MATRIX_N, MATRIX_K,
// TILE_ROWS, STEPS_AHEAD and IN_HALVES, declares `vec4 x[]`, the same binding as `uvec4 x_halves[]`, which it is with
// IN_HALVES, and as FIRST_OF_X(i, token), where the activations of a token of the tile begin there, in fours; i counts the
// chunks of an invocation. N_PARTS: workgroups that share the columns of a tile.
const uint BLOCKS = COLUMNS / 32;
const uint PART_BLOCKS = BLOCKS / N_PARTS;
const uint TILE_BLOCKS = LOCAL_SIZE / TILE_ROWS; // of a tile's row, and of a step; an invocation has one
const uint TILE_COLUMNS = TILE_BLOCKS * 32;
const uint EIGHTS = TILE_COLUMNS / 8;
const uint STRIDE = EIGHTS + 1; // uvec4 of a tile's row: its halves, and one against bank conflicts
const uint ROW_STEPS = TILE_ROWS / SUBGROUPS_ALONG_ROWS / MATRIX_M;
const uint TOKEN_STEPS = TILE_TOKENS / SUBGROUPS_ALONG_TOKENS / MATRIX_N;
const uint X_CHUNKS = TILE_TOKENS * EIGHTS / LOCAL_SIZE; // of eight activations, an invocation's

#define Sums coopmat<float, gl_ScopeSubgroup, MATRIX_M, MATRIX_N, gl_MatrixUseAccumulator>

shared uvec4 w_tile[TILE_ROWS * STRIDE];
shared uvec4 x_tile[TILE_TOKENS * STRIDE];

// what comes next of the tiles: an invocation's weights and activations
Weights w[STEPS_AHEAD];
const uint CHUNK = 2 - IN_HALVES; // words of 16 bytes
uvec4 a[STEPS_AHEAD * X_CHUNKS * CHUNK];

void load_step(uint s, uint w_block, uint block) {
  w[s] = load_weights(w_block + block);
  [[unroll]] for (uint i = 0; i < X_CHUNKS; i++) {
    uint chunk = gl_LocalInvocationIndex + i * LOCAL_SIZE;
    uint from = FIRST_OF_X(i, chunk / EIGHTS) + block * 8 + chunk % EIGHTS * 2;
    uint to = (s * X_CHUNKS + i) * CHUNK;
    if (IN_HALVES != 0) {
      a[to] = x_halves[from / 2];
    } else {
      [[unroll]] for (uint k = 0; k < CHUNK; k++) a[to + k] = floatBitsToUint(x[from + k]);
    }
  }
}

void store_step(uint s, uint w_block, uint block) {
  uint self = gl_LocalInvocationIndex, to = self / TILE_BLOCKS * STRIDE + self % TILE_BLOCKS * 4;
  uvec4 halves[4];
  halves_of(w[s], w_block + block, halves);
  [[unroll]] for (uint i = 0; i < 4; i++) w_tile[to + i] = halves[i];
  [[unroll]] for (uint i = 0; i < X_CHUNKS; i++) {
    uint chunk = self + i * LOCAL_SIZE;
    uint from = (s * X_CHUNKS + i) * CHUNK;
    x_tile[chunk / EIGHTS * STRIDE + chunk % EIGHTS] =
        IN_HALVES != 0 ? a[from] : pack_eight(uintBitsToFloat(a[from]), uintBitsToFloat(a[from + CHUNK - 1]));
  }
}

uint first_row_step() { return gl_SubgroupID % SUBGROUPS_ALONG_ROWS * ROW_STEPS; } // of a subgroup

uint first_token_step() { return gl_SubgroupID / SUBGROUPS_ALONG_ROWS * TOKEN_STEPS; }

// a small tile leaves some idle
bool subgroup_multiplies() { return gl_SubgroupID < SUBGROUPS_ALONG_ROWS * SUBGROUPS_ALONG_TOKENS; }

Sums sums[ROW_STEPS * TOKEN_STEPS];

// Adds the products of a part's columns to sums. w_block: the part's first block of an invocation's row of weights, and its
// place in it. multiplies: whether the subgroup's rows and tokens are wanted.
void add_products(uint w_block, bool multiplies) {
  uint row_step0 = first_row_step(), token_step0 = first_token_step();
  [[unroll]] for (uint s = 0; s < STEPS_AHEAD; s++) {
    load_step(s, w_block, min(s * TILE_BLOCKS, PART_BLOCKS - TILE_BLOCKS));
  }
  for (uint first = 0; first < PART_BLOCKS; first += STEPS_AHEAD * TILE_BLOCKS) {
    [[unroll]] for (uint s = 0; s < STEPS_AHEAD; s++) {
      uint block = first + s * TILE_BLOCKS;
      if (block >= PART_BLOCKS) break;
      barrier(); // the last tiles have been read
      store_step(s, w_block, block);
      barrier();
      uint next = block + STEPS_AHEAD * TILE_BLOCKS;
      if (next < PART_BLOCKS) load_step(s, w_block, next);
      if (multiplies) {
        [[unroll]] for (uint k = 0; k < TILE_COLUMNS / MATRIX_K; k++) {
          coopmat<float16_t, gl_ScopeSubgroup, MATRIX_M, MATRIX_K, gl_MatrixUseA> w_part[ROW_STEPS];
          [[unroll]] for (uint r = 0; r < ROW_STEPS; r++) {
            coopMatLoad(w_part[r], w_tile, (row_step0 + r) * MATRIX_M * STRIDE + k * (MATRIX_K / 8), STRIDE,
                        gl_CooperativeMatrixLayoutRowMajor);
          }
          [[unroll]] for (uint t = 0; t < TOKEN_STEPS; t++) {
            coopmat<float16_t, gl_ScopeSubgroup, MATRIX_K, MATRIX_N, gl_MatrixUseB> x_part;
            coopMatLoad(x_part, x_tile, (token_step0 + t) * MATRIX_N * STRIDE + k * (MATRIX_K / 8), STRIDE,
                        gl_CooperativeMatrixLayoutColumnMajor);
            [[unroll]] for (uint r = 0; r < ROW_STEPS; r++) {
              sums[r * TOKEN_STEPS + t] = coopMatMulAdd(w_part[r], x_part, sums[r * TOKEN_STEPS + t]);
            }
          }
        }
      }
    }
  }
}
