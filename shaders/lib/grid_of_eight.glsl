// IQ2 formats: eight values of 8, 25 or 43 an entry of the codebook, with a sign each.
uvec2 eight_of_grid(uint i, uint signs) {
  uvec2 codes = eight_codes(i);
  uvec2 values = codes * 17 + ((codes >> 1) & 0x01010101u) + 0x08080808u;
  return uvec2(with_signs(values.x, signs), with_signs(values.y, signs >> 4));
}
