// A tile of expert_matvec and expert_matmul: slots that take the same expert, an entry each. The including file declares
// `uvec4 tiles[]`, `uint entries[]` and the constants N_EXPERTS, N_SLOTS, LISTED, TILE_SIZE and SPAN, the entries of a
// workgroup; n_rows is of lib/step.glsl. Without a list every row takes all experts, slot k expert k.
const uint SPANS = (TILE_SIZE + SPAN - 1) / SPAN; // of a listed tile

struct Tile {
  uint expert;
  uint first; // entry, or row where there is no list
  uint n;     // 0: there is nothing to do
};

Tile tile_of(uint number) {
  if (LISTED == 0) {
    uint row = number / N_EXPERTS * SPAN;
    return Tile(number % N_EXPERTS, row, row < n_rows ? min(SPAN, n_rows - row) : 0);
  }
  uvec4 tile = tiles[number / SPANS];
  uint first = number % SPANS * SPAN;
  return Tile(tile.x, tile.y + first, first < tile.z ? min(SPAN, tile.z - first) : 0);
}

// number of a slot, row * N_SLOTS + k; beyond the last entry the last one's
uint slot_of(Tile tile, uint i) {
  uint entry = tile.first + min(i, tile.n - 1);
  return LISTED == 0 ? entry * N_SLOTS + tile.expert : entries[entry];
}
