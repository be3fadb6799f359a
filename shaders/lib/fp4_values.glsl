// Values of MXFP4 and NVFP4: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives, in the file as a sign and its place in this list.
// In the plane each is four bits s, so chosen that few operations on planes (lib/bit_planes.glsl) make its five.
#ifdef SPLITS
const uint CODES[16] = uint[](4, 5, 9, 13, 12, 1, 2, 10, 4, 15, 11, 7, 6, 3, 14, 0); // minus zero as zero
#endif
#include "bit_planes.glsl"
#ifndef SPLITS
void unpack_values(uvec4 s, out uvec4 first, out uvec4 second) {
  uint minus = ~(s.y ^ (s.x | s.z)), twos = s.x & (~s.z | s.w);
  uvec4 low = joined_nibbles(uvec4(s.x & s.z, twos, s.w ^ minus ^ twos, s.y));
  uvec4 signs = (uvec4(minus) >> uvec4(0, 1, 2, 3)) & 0x11111111u;
  join_bytes(low, (signs << 4) - signs, first, second);
}
#endif
