// Where the rows of an expert lie: a stack holds tensors of N_EXPERTS matrices of EXPERT_ROWS rows, one behind the other,
// and row r counts through the expert's matrices of all of them. FIRST_TENSOR: those in front of them in other stacks,
// which only biases and scales count. All three are constants of the including file.
uint expert_row(uint expert, uint r) {
  return (r / EXPERT_ROWS * N_EXPERTS + expert) * EXPERT_ROWS + r % EXPERT_ROWS;
}

uint bias_place(uint expert, uint r) { return expert_row(expert, r) + FIRST_TENSOR * N_EXPERTS * EXPERT_ROWS; }

uint scale_place(uint expert, uint r) { return (FIRST_TENSOR + r / EXPERT_ROWS) * N_EXPERTS + expert; }
