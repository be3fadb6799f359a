// Splits a pair of blocks of 32 values: a pair begins at a whole word, a block with two bytes of scale need not.
#define PARTS 1
#if defined(Q8_0)
#define QUANT_WORDS 8
#else
#define QUANT_WORDS 4
#endif
#if defined(Q4_1)
#define PAIR_WORDS (2 * QUANT_WORDS + 2)
#else
#define PAIR_WORDS (2 * QUANT_WORDS + 1)
#endif

void split(uint unit, uint part) {
  uint from = unit * PAIR_WORDS;
  uint pair = first_unit + unit;
  uint to = pair * 2 * QUANT_WORDS;
  uint w[PAIR_WORDS];
  [[unroll]] for (uint i = 0; i < PAIR_WORDS; i++) w[i] = raw[from + i];
  [[unroll]] for (uint i = 0; i < QUANT_WORDS; i++) {
#if defined(Q4_1)
    quants[to + i] = w[1 + i];
    quants[to + QUANT_WORDS + i] = w[QUANT_WORDS + 2 + i];
#else
    quants[to + i] = (w[i] >> 16) | (w[i + 1] << 16); // the first block's scale fills half a word
    quants[to + QUANT_WORDS + i] = w[QUANT_WORDS + 1 + i];
#endif
  }
#if defined(Q4_1)
  scales[2 * pair] = w[0];
  scales[2 * pair + 1] = w[QUANT_WORDS + 1];
#else
  scales[pair] = (w[0] & 0xffffu) | (w[QUANT_WORDS] & 0xffff0000u);
#endif
}
