// TQ1_0: value = d (q - 1), q a digit to base three; a byte is a fraction with up to five of them, in 256ths. A super-block
// of eight blocks, as in the file: twelve words of quants; one that holds the last 16 values, d as float32. The bytes of
// the first eight words hold the same value of five blocks; those of the next four, of half blocks; the last ones, four
// values apart.
#define CENTRE 1.0
#ifndef SPLITS
struct Weights {
  uvec4 first;
  uvec4 second;
  uvec2 scale; // the last word, d
};

Weights load_weights(uint block) {
  uint words = block / 8 * 3, i = block % 8;
  Weights w;
  w.first = quants[words + (i < 5 ? 0 : 2)];
  w.second = quants[words + (i < 5 ? 1 : 2)];
  w.scale = uvec2(scales[block / 8 * 2], scales[block / 8 * 2 + 1]);
  return w;
}

uint first_words(Weights w) { return w.first.x | w.scale.x; }

vec2 scales_of(Weights w, uint block) { return vec2(uintBitsToFloat(w.scale.y)); }

// the digit behind those that a power of three brings before the point
uvec4 digits(uvec4 words, uvec4 power) {
  uvec4 even = ((words & 0x00ff00ffu) * power) & 0x00ff00ffu, odd = (((words >> 8) & 0x00ff00ffu) * power) & 0x00ff00ffu;
  return ((even * 3 >> 8) & 0x00030003u) | ((odd * 3) & 0x03000300u);
}

uint power_of_three(uint n) { return n == 0 ? 1 : bitfieldExtract(0x511b0903u, int(8 * n - 8), 8); }

void unpack(Weights w, uint block, out uvec4 first, out uvec4 second) {
  uint i = block % 8, n = i < 5 ? i : 2 * i - 10;
  first = digits(w.first, uvec4(power_of_three(n)));
  uvec4 words = i == 7 ? uvec4(w.scale.x) : w.second;
  second = digits(words, i == 7 ? uvec4(1, 3, 9, 27) : uvec4(power_of_three(i < 5 ? n : n + 1)));
}
#else
#define PARTS 14
void split(uint unit, uint part) {
  uint from = 54 * unit, superblock = first_unit + unit;
  if (part < 12) quants[12 * superblock + part] = raw_word(from + 4 * part);
  if (part == 12) scales[2 * superblock] = raw_word(from + 48);
  if (part == 13) scales[2 * superblock + 1] = floatBitsToUint(unpackHalf2x16(raw_half(from + 52)).x);
}
#endif
