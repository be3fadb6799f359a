// Rotary position embedding. Define QKV_BINDING and TABLE_BINDING; the including file has the constants ROPE_DIMS and
// IS_INTERLEAVED. Both pairings: (2i, 2i + 1) and (i, i + ROPE_DIMS / 2). Su et al. 2021, arXiv 2104.09864.
layout(std430, binding = QKV_BINDING) coherent readonly buffer Qkv { float qkv[]; };
layout(std430, binding = TABLE_BINDING) readonly buffer RopeTable { vec2 rope_table[]; };

const uint TURNS = ROPE_DIMS / 2; // rotations of a position

// dimension d of the head that begins at qkv[head], rotated for `position`
float rotated(uint head, uint d, uint position) {
  float v = qkv[head + d];
  if (d >= ROPE_DIMS) return v;
  bool is_first = IS_INTERLEAVED != 0 ? d % 2 == 0 : d < TURNS;
  uint partner = IS_INTERLEAVED != 0 ? d ^ 1u : (is_first ? d + TURNS : d - TURNS);
  vec2 turn = rope_table[position * TURNS + (IS_INTERLEAVED != 0 ? d / 2 : d % TURNS)];
  return v * turn.x + qkv[head + partner] * (is_first ? -turn.y : turn.y);
}

vec4 four_of_head(uint head, uint d, uint position, bool rotates) {
  if (!rotates) return vec4(qkv[head + d], qkv[head + d + 1], qkv[head + d + 2], qkv[head + d + 3]);
  return vec4(rotated(head, d, position), rotated(head, d + 1, position), rotated(head, d + 2, position),
              rotated(head, d + 3, position));
}
