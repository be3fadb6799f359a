// split_planes: raw GGUF blocks, as they lie in the file, to a plane of quants and a plane of scales
// bindings: raw quants scales
// constants: local_size
// push: n_pairs first_pair
// dispatch: x = pairs of blocks / local_size (a smaller dispatch loops)
// formats: Q4_0 Q4_1 Q8_0
// numerics: copies; two blocks an invocation, because a pair begins at a whole word
// source: vkllm/formats/quants.py, split_planes
#version 450
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push {
  uint n_pairs;
  uint first_pair; // where this chunk begins in the planes
};
layout(std430, binding = 0) readonly buffer Raw { uint raw[]; };
layout(std430, binding = 1) writeonly buffer Quants { uint quants[]; };
layout(std430, binding = 2) writeonly buffer Scales { uint scales[]; };

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

void split(uint pair) {
  uint from = pair * PAIR_WORDS;
  uint to = (first_pair + pair) * 2 * QUANT_WORDS;
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
  scales[2 * (first_pair + pair)] = w[0];
  scales[2 * (first_pair + pair) + 1] = w[QUANT_WORDS + 1];
#else
  scales[first_pair + pair] = (w[0] & 0xffffu) | (w[QUANT_WORDS] & 0xffff0000u);
#endif
}

void main() {
  uint stride = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  for (uint pair = gl_GlobalInvocationID.x; pair < n_pairs; pair += stride) split(pair);
}
