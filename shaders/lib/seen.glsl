// Which cached tokens a row of the step sees: those up to its own, or with IS_CAUSAL = 0 all of the sequence, which then
// is in the step as a whole; with a WINDOW those less than WINDOW away.
uint first_seen(uint row) { return WINDOW != 0 ? max(rows[row].y + 1, WINDOW) - WINDOW : 0; }

uint end_seen(uint row) {
  uint own = rows[row].y + 1;
  if (IS_CAUSAL != 0) return own;
  uint all = rows[n_rows - 1].y + 1;
  return WINDOW != 0 ? min(own - 1 + WINDOW, all) : all;
}
