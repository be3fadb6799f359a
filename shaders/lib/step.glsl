// The step: what changes from one step to the next. Define STEP_BINDING before the include.
//
// rows[i] = (token id, position, offset of the sequence's blocks in block_table, slot that the states of layers behind the
// row are stored in, plus 1; 0: they are not). state_slot: the slot with the states before the first row, plus 1; 0: zeros.
// Cached token p of a sequence lies in cache block block_table[offset + p / KV_BLOCK].
// The layout is written by vkllm/gpu/program/step.py, and a test holds both against each other.
#define MAX_ROWS 512
#define KV_BLOCK 32

layout(std430, binding = STEP_BINDING) readonly buffer Step {
  uint n_rows;
  uint n_table;
  uint draw_top_k; // what `sample` needs: Draw in vkllm/gpu/program/step.py
  uint draw_top_p;
  uint draw_min_p;
  float draw_slope;
  uint draw_number;
  uint state_slot;
  uvec4 rows[MAX_ROWS];
  uint block_table[];
};
