// IQ1 formats: eight values of -1, 0 or 1 an entry of the codebook, plus or minus an eighth. The bytes are eight times that.
uvec2 eight_of_grid(uint i, bool is_lower) {
  uvec2 values = eight_codes(i) * 8 + (is_lower ? 0u : 0x02020202u);
  return ((values | 0x80808080u) - 0x09090909u) ^ 0x80808080u; // each byte less 9
}
