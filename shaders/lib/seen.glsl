// Which cached tokens a row of the step sees: with a WINDOW those less than WINDOW before it, with a CHUNK those from its last
// multiple on. AHEAD: of the tokens behind it AHEAD_NONE, AHEAD_WINDOW: those less than WINDOW away, or all of its
// sequence, which then has been cached as a whole: it is in the step, or its steps go through the layers together. Then
// spare[1] of lib/step.glsl is the number of its tokens, otherwise 0.
#define AHEAD_NONE 0
#define AHEAD_WINDOW 1
const bool SEES_LAST = WINDOW != 0 || CHUNK != 0; // the last ones only

uint first_seen(uint row) {
  uint own = rows[row].y;
  return WINDOW != 0 ? max(own + 1, WINDOW) - WINDOW : (CHUNK != 0 ? own / CHUNK * CHUNK : 0);
}

uint end_seen(uint row) {
  uint own = rows[row].y + 1;
  if (AHEAD == AHEAD_NONE) return own;
  uint all = spare[1];
  if (all == 0) {
    uint part = part_of_row(row);
    all = rows[step_parts[part].x + step_parts[part].y - 1].y + 1;
  }
  return AHEAD == AHEAD_WINDOW ? min(own - 1 + WINDOW, all) : all;
}
