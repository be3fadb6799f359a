// Weight formats: how a block of 32 values lies in its planes (vkllm/formats/quants.py).
// One of F32 F16 BF16 Q4_0 Q4_1 Q8_0 Q4_K Q5_K Q6_K is defined. The including file declares the planes
// `uvec4 quants[]` and `uint scales[]`, bindings 0 and 1. Here are
//   float value(block, i)   one value
//   Weights, load_weights   a block in registers as it lies in memory, so that nothing waits for its loads
//   scales_of(w, block)     its scales as floats
//   unpack                  of quantized formats: its values 0-15 and 16-31 as signed bytes, before the scales
#if defined(Q4_K) || defined(Q5_K) || defined(Q6_K)
#include "superblocks.glsl"
#else
#include "blocks.glsl"
#endif
