// Values of IQ4_NL and IQ4_XS: 16 signed bytes, in the file their places in a list. In the plane each is four bits s, so
// chosen that eight operations with three operands each on planes (lib/bit_planes.glsl) make its eight.
#ifdef SPLITS
const uint CODES[16] = uint[](0, 2, 6, 14, 7, 15, 1, 3, 8, 4, 10, 5, 12, 9, 11, 13);
#endif
#include "bit_planes.glsl"
#ifndef SPLITS
void unpack_values(uvec4 s, out uvec4 first, out uvec4 second) {
  uint p4 = s.y ^ (s.z & (s.y ^ s.w));
  uint p7 = s.w ^ (~s.z | (s.y ^ s.w));
  uint p1 = (s.x ^ s.w) & (s.x | p7);
  uint p5 = s.y ^ p4 ^ p1;
  uint p6 = s.x & (s.w | p7);
  uint p3 = (s.y & s.z) | (s.y ^ s.z ^ p5);
  uint p2 = s.z ^ (p6 & ~p3);
  uint p0 = s.w | ~(p3 ^ p2);
  join_bytes(joined_nibbles(uvec4(p0, p1, p2, p3)), joined_nibbles(uvec4(p4, p5, p6, p7)), first, second);
}
#endif
