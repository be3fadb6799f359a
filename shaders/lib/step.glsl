// The step: what changes from one step to the next. Define STEP_BINDING before the include.
//
// A step is narrow, with at most MAX_NARROW rows of any number of sequences, or wide, with rows of one sequence.
// rows[i] = (token id, position, offset of its sequence's blocks in block_table, low half: slot that the states of layers
// behind the row are stored in, plus 1; 0: they are not; high half: its part). Cached token p of a sequence lies in cache
// block block_table[offset + p / KV_BLOCK].
// step_parts[i], of each sequence = (first row, number of rows, slot with the states before the first row, plus 1; 0: they
// are zeros, 0).
// step_results[2 * i] = (row, sequence: a place in next_token, RESULT_ flags, top_k), and step_results[2 * i + 1] = (top_p,
// min_p, slope as the bits of a float32, number) are what `sample` needs, see Draw in vkllm/gpu/program/step.py; of a
// result whose logits the host wants, number is the place of these.
// The layout is written by vkllm/gpu/program/step.py, and a test holds both against each other.
#define MAX_ROWS 512
#define MAX_NARROW 32
#define KV_BLOCK 32

#define RESULT_LOGITS 1u // they go to the host, and nothing is chosen
#define RESULT_MASKED 2u
#define RESULT_GREEDY 4u // the largest logit is chosen; a result without this flag and the first is drawn
#define RESULT_LAST 8u   // of its sequence: the choice becomes the sequence's next token

layout(std430, binding = STEP_BINDING) readonly buffer Step {
  uint n_rows;
  uint n_table; // words of block_table
  uint n_step_parts;
  uint n_results;
  uint step_slot; // of the slots in host memory
  uint spare[3];
  uvec4 rows[MAX_ROWS];
  uvec4 step_parts[MAX_NARROW];
  uvec4 step_results[2 * MAX_NARROW];
  uint block_table[];
};

uint part_of_row(uint row) { return rows[row].w >> 16; }

bool is_drawn(uint result) { return (step_results[2 * result].z & (RESULT_LOGITS | RESULT_GREEDY)) == 0; }
