// Rotary position embedding, and by what else queries and keys are multiplied. Define QKV_BINDING, TABLE_BINDING,
// HEAD_WEIGHTS_BINDING and Q_FACTORS_BINDING; the including file has the constants HEAD_DIM, ROPE_DIMS (0: no rotation),
// IS_INTERLEAVED, HEAD_WEIGHTS and HAS_Q_FACTORS. Both pairings: (2i, 2i + 1) and (i, i + ROPE_DIMS / 2).
// Su et al. 2021, arXiv 2104.09864.
//
// HEAD_WEIGHTS: 0: none; 1: a head's dimensions are multiplied by a weight each before they are rotated; 2: after.
// head_weights: those of queries, then those of keys. q_factors: of queries, by position.
layout(std430, binding = QKV_BINDING) coherent readonly buffer Qkv { float qkv[]; };
layout(std430, binding = TABLE_BINDING) readonly buffer RopeTable { vec2 rope_table[]; };
layout(std430, binding = HEAD_WEIGHTS_BINDING) readonly buffer HeadWeights { float head_weights[]; };
layout(std430, binding = Q_FACTORS_BINDING) readonly buffer QFactors { float q_factors[]; };

const uint TURNS = ROPE_DIMS / 2; // rotations of a position

#define QUERY 0
#define KEY HEAD_DIM // where the weights begin

float unrotated(uint head, uint d, uint kind) {
  return HEAD_WEIGHTS == 1 ? qkv[head + d] * head_weights[kind + d] : qkv[head + d];
}

// dimension d of the head that begins at qkv[head], rotated for `position`
float rotated(uint head, uint d, uint position, uint kind) {
  float v = unrotated(head, d, kind);
  if (d < ROPE_DIMS) {
    bool is_first = IS_INTERLEAVED != 0 ? d % 2 == 0 : d < TURNS;
    uint partner = IS_INTERLEAVED != 0 ? d ^ 1u : (is_first ? d + TURNS : d - TURNS);
    vec2 turn = rope_table[position * TURNS + (IS_INTERLEAVED != 0 ? d / 2 : d % max(TURNS, 1))];
    v = v * turn.x + unrotated(head, partner, kind) * (is_first ? -turn.y : turn.y);
  }
  return HEAD_WEIGHTS == 2 ? v * head_weights[kind + d] : v;
}

// dimensions d to d + 3 as they are, and as a query or key
vec4 four_of_head(uint head, uint d) { return vec4(qkv[head + d], qkv[head + d + 1], qkv[head + d + 2], qkv[head + d + 3]); }

vec4 rotated_four(uint head, uint d, uint position, uint kind) {
  vec4 v = vec4(rotated(head, d, position, kind), rotated(head, d + 1, position, kind),
                rotated(head, d + 2, position, kind), rotated(head, d + 3, position, kind));
  return HAS_Q_FACTORS != 0 && kind == QUERY ? v * q_factors[position] : v;
}
