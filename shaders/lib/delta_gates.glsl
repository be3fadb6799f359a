// The gates of a gated delta net's heads, and which key head a value head takes; the constants are the including file's.
#include "softplus.glsl"
const uint SHARING = N_V_HEADS / N_K_HEADS; // value heads of a key head

uint key_head(uint head) { return IS_GROUPED != 0 ? head / SHARING : head % N_K_HEADS; }

// the column of a value head's beta or alpha
uint gate_column(uint head, bool is_alpha) {
  if (HAS_FUSED_GATES == 0) return (is_alpha ? ALPHA_COLUMN : BETA_COLUMN) + head;
  return BETA_COLUMN + head / SHARING * 2 * SHARING + (is_alpha ? SHARING : 0) + head % SHARING;
}

// ln of the decay of a head in a row
float log_decay_of(uint row, uint head, float rate, float bias) {
  return softplus(gates[row * GATES_COLUMNS + gate_column(head, true)] + bias) * rate;
}

float decay_of(uint row, uint head, float rate, float bias) { return exp(log_decay_of(row, head, rate, bias)); }

float strength_of(uint row, uint head) {
  return 1.0 / (1.0 + exp(-gates[row * GATES_COLUMNS + gate_column(head, false)]));
}
