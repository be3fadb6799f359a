// rope: rotates queries and keys by their positions; stores keys and values in the cache as float16
// bindings: qkv rope_table q k_cache v_cache step
// constants: local_size n_heads n_kv_heads head_dim rope_dims is_interleaved
// push:
// dispatch: x = (n_heads + 2 * n_kv_heads) * head_dim / 2 / local_size, y = tokens; two dimensions an invocation
// numerics: float32, cosines and sines from a table computed in float64; the cache is float16
// source: Su et al. 2021, arXiv 2104.09864; both pairings: (2i, 2i + 1) and (i, i + rope_dims / 2)
#version 450
#extension GL_GOOGLE_include_directive : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint N_HEADS = 32;
layout(constant_id = 2) const uint N_KV_HEADS = 8;
layout(constant_id = 3) const uint HEAD_DIM = 128;
layout(constant_id = 4) const uint ROPE_DIMS = 128;
layout(constant_id = 5) const uint IS_INTERLEAVED = 1;
layout(std430, binding = 0) readonly buffer Qkv { float qkv[]; };
layout(std430, binding = 1) readonly buffer RopeTable { vec2 rope_table[]; };
layout(std430, binding = 2) writeonly buffer Q { vec2 q[]; };
layout(std430, binding = 3) writeonly buffer KCache { uint k_cache[]; };
layout(std430, binding = 4) writeonly buffer VCache { uint v_cache[]; };
#define STEP_BINDING 5
#include "lib/step.glsl"

const uint HALF = ROPE_DIMS / 2;
const uint HEADS = N_HEADS + 2 * N_KV_HEADS;

// dimension d of the head that begins at `head`, rotated for `position`
float rotated(uint head, uint d, uint position) {
  if (d >= ROPE_DIMS) return qkv[head + d];
  bool is_first = IS_INTERLEAVED != 0 ? d % 2 == 0 : d < HALF;
  uint partner = IS_INTERLEAVED != 0 ? d ^ 1u : (is_first ? d + HALF : d - HALF);
  uint pair = IS_INTERLEAVED != 0 ? d / 2 : d % HALF;
  vec2 turn = rope_table[position * HALF + pair];
  return qkv[head + d] * turn.x + qkv[head + partner] * (is_first ? -turn.y : turn.y);
}

void main() {
  uint row = gl_WorkGroupID.y;
  uint word = gl_GlobalInvocationID.x; // two dimensions of one head
  if (row >= n_rows || word >= HEADS * HEAD_DIM / 2) return;
  uint position = rows[row].y;
  uint head_index = word / (HEAD_DIM / 2);
  uint d = 2 * (word % (HEAD_DIM / 2));
  uint head = (row * HEADS + head_index) * HEAD_DIM;
  bool is_value = head_index >= N_HEADS + N_KV_HEADS;
  vec2 pair = is_value ? vec2(qkv[head + d], qkv[head + d + 1])
                       : vec2(rotated(head, d, position), rotated(head, d + 1, position));
  if (head_index < N_HEADS) {
    q[(row * N_HEADS + head_index) * (HEAD_DIM / 2) + d / 2] = pair;
    return;
  }
  uint kv_head = (head_index - N_HEADS) % N_KV_HEADS;
  uint cache_block = block_table[rows[row].z + position / KV_BLOCK];
  uint cached = ((cache_block * N_KV_HEADS + kv_head) * KV_BLOCK + position % KV_BLOCK) * (HEAD_DIM / 2) + d / 2;
  if (is_value) v_cache[cached] = packHalf2x16(pair);
  else k_cache[cached] = packHalf2x16(pair);
}
