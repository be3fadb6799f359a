// Which cached tokens a row of the step sees: those up to its own, or with IS_CAUSAL = 0 all of its sequence, which then
// is in the step as a whole; with a WINDOW those less than WINDOW away, with a CHUNK those from its last multiple on.
const bool SEES_LAST = WINDOW != 0 || CHUNK != 0; // the last ones only

uint first_seen(uint row) {
  uint own = rows[row].y;
  return WINDOW != 0 ? max(own + 1, WINDOW) - WINDOW : (CHUNK != 0 ? own / CHUNK * CHUNK : 0);
}

uint end_seen(uint row) {
  uint own = rows[row].y + 1;
  if (IS_CAUSAL != 0) return own;
  uint part = 0;
  for (uint p = 1; p < n_step_parts && step_parts[p].x <= row; p++) part = p;
  uint all = rows[step_parts[part].x + step_parts[part].y - 1].y + 1;
  return WINDOW != 0 ? min(own - 1 + WINDOW, all) : all;
}
