// The parts that attention takes cached tokens in. Where a part begins depends on its position only: a row's results are
// the same whichever workgroups take its parts, and however deep its neighbours are. The first 2^LOG2_PARTS parts have
// PART_KEYS tokens each, and each doubling of the context is divided into as many again, twice as long as those before.
// The including file has the constants PART_KEYS and LOG2_PARTS; with 31 all parts have PART_KEYS tokens.

uint part_of(uint position) {
  uint part = position / PART_KEYS;
  uint doublings = part >> LOG2_PARTS == 0 ? 0 : uint(findMSB(part)) - LOG2_PARTS;
  return (doublings << LOG2_PARTS) + (part >> doublings);
}

uint first_of_part(uint part) {
  uint doublings = max(part >> LOG2_PARTS, 1) - 1;
  return (part - (doublings << LOG2_PARTS)) * PART_KEYS << doublings;
}

// Sums of two parts, the later one second: maximum and sum of weights, and weighted values. precise: not contracted, so
// that all ways to this place round alike.
void add_part(inout vec2 weights, inout vec4 values, vec2 part, vec4 part_values) {
  float most = max(weights.x, part.x);
  float before = exp(weights.x - most), added = exp(part.x - most);
  precise float total = weights.y * before + part.y * added;
  precise vec4 sum = values * before + part_values * added;
  weights = vec2(most, total);
  values = sum;
}
