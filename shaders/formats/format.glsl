// Weight formats: how a block of 32 values lies in its planes (vkllm/formats/quants.py). One of the names below is
// defined. The including file declares the planes `uvec4 quants[]` and `uint scales[]`, bindings 0 and 1. A format's
// file has
//   Weights, load_weights(block)    a block in registers as it lies in memory, so that nothing waits for its loads
//   first_words(w)                  a word of each of its cache lines
//   scales_of(w, block)             its scales as floats
//   unpack(w, block, first, second) its values 0-15 and 16-31 as bytes, before the scales
// and defines, where it applies,
//   IS_SIGNED                       the bytes are signed
//   HAS_NIBBLES                     w.nibbles has all values: byte j of its words values j (low) and j + 16
//   CENTRE                          what is subtracted from the bytes
//   HAS_HALF_SCALES                 scales: of the first half of the block, of the second
//   HAS_MINIMA                      behind them: what is added to the products, of the block or of each half
//   MIDDLE                          with minima: about the middle of the bytes
//   Scales                          the type of the scales, if it is not vec2
//   SHARED_BLOCKS                   blocks that share a word of scales, if there are more than two and a row may have
//                                   a number of blocks that this does not divide
//   CODEBOOK_WORDS                  words of the codebook that the plane of scales begins with (lib/codebook.glsl)
//   HAS_TABLE                       all invocations of a workgroup call prepare_weights() first
// Files of plain numbers define HAS_NUMBERS and have value(block, i), weight_values and halves_of instead of all but
// the first two. With SPLITS, the files have what shaders/split_planes.comp needs.
#if defined(F32)
#include "formats/f32.glsl"
#elif defined(F16)
#include "formats/f16.glsl"
#elif defined(BF16)
#include "formats/bf16.glsl"
#elif defined(Q4_0)
#include "formats/q4_0.glsl"
#elif defined(Q4_1)
#include "formats/q4_1.glsl"
#elif defined(Q5_0)
#include "formats/q5_0.glsl"
#elif defined(Q5_1)
#include "formats/q5_1.glsl"
#elif defined(Q8_0)
#include "formats/q8_0.glsl"
#elif defined(Q2_K)
#include "formats/q2_k.glsl"
#elif defined(Q3_K)
#include "formats/q3_k.glsl"
#elif defined(Q4_K)
#include "formats/q4_k.glsl"
#elif defined(Q5_K)
#include "formats/q5_k.glsl"
#elif defined(Q6_K)
#include "formats/q6_k.glsl"
#elif defined(IQ4_NL)
#include "formats/iq4_nl.glsl"
#elif defined(IQ4_XS)
#include "formats/iq4_xs.glsl"
#elif defined(MXFP4)
#include "formats/mxfp4.glsl"
#elif defined(NVFP4)
#include "formats/nvfp4.glsl"
#elif defined(IQ1_S)
#include "formats/iq1_s.glsl"
#elif defined(IQ1_M)
#include "formats/iq1_m.glsl"
#elif defined(IQ2_XXS)
#include "formats/iq2_xxs.glsl"
#elif defined(IQ2_XS)
#include "formats/iq2_xs.glsl"
#elif defined(IQ2_S)
#include "formats/iq2_s.glsl"
#elif defined(IQ3_XXS)
#include "formats/iq3_xxs.glsl"
#elif defined(IQ3_S)
#include "formats/iq3_s.glsl"
#elif defined(TQ1_0)
#include "formats/tq1_0.glsl"
#elif defined(TQ2_0)
#include "formats/tq2_0.glsl"
#endif

#if !defined(SPLITS) && !defined(HAS_NUMBERS)
#ifndef Scales
#define Scales vec2
#endif
#ifndef SHARED_BLOCKS
#define SHARED_BLOCKS 2
#endif

// value i of a block
float value(uint block, uint i) {
  Weights w = load_weights(block);
  uvec4 first, second;
  unpack(w, block, first, second);
  Scales scale = scales_of(w, block);
  int word = int((i < 16 ? first : second)[i / 4 % 4]), at = int(i % 4 * 8);
#ifdef IS_SIGNED
  float integer = float(bitfieldExtract(word, at, 8));
#else
  float integer = float(bitfieldExtract(uint(word), at, 8));
#endif
#ifdef CENTRE
  integer -= CENTRE;
#endif
#if defined(HAS_HALF_SCALES) && defined(HAS_MINIMA)
  return i < 16 ? scale.x * integer + scale.z : scale.y * integer + scale.w;
#elif defined(HAS_HALF_SCALES)
  return (i < 16 ? scale.x : scale.y) * integer;
#elif defined(HAS_MINIMA)
  return scale.x * integer + scale.y;
#else
  return scale.x * integer;
#endif
}
#endif
#if !defined(SPLITS) && !defined(HAS_TABLE)
void prepare_weights() {}
#endif
