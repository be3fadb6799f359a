// Attention of a workgroup: QUERIES queries that share a key head, over a range of cached tokens, by an online softmax.
// LANES neighbouring lanes, a team, take one key together, eight dimensions each; the workgroup's teams take the keys in
// turn and keep a maximum, a sum of weights and weighted values each, which `merged_four` puts together.
// The including file has LOCAL_SIZE, N_KV_HEADS, HEAD_DIM, LANES, HEADS, TOKENS, AT_ONCE, K_Q8_0, V_Q8_0, SOFTCAP,
// LATENT_DIM: 0, or the values are the first LATENT_DIM numbers of the keys; V_Q8_0 is then K_Q8_0; and lib/seen.glsl.
// Milakov and Gimelshein 2018, arXiv 1805.02867.
const uint PIECES = (EIGHTS + LANES - 1) / LANES; // eights of a row that a lane takes
const uint VALUE_DIM = LATENT_DIM != 0 ? LATENT_DIM : HEAD_DIM;
const uint V_EIGHTS = VALUE_DIM / 8;
const uint V_PIECES = (V_EIGHTS + LANES - 1) / LANES;
const uint TEAMS = LOCAL_SIZE / LANES;
const uint STRIDE = AT_ONCE * TEAMS; // keys that the workgroup takes together
const uint QUERIES = TOKENS * HEADS; // query t * HEADS + h: token t, head h
const uint FOURS = VALUE_DIM / 4;
const uint OUT_FOURS = QUERIES * FOURS;

shared float team_largest[TEAMS * QUERIES];
shared float team_total[TEAMS * QUERIES];
shared float team_share[TEAMS * QUERIES]; // what a team's sums count for, against the largest of all teams
shared vec4 team_sum[TEAMS * OUT_FOURS];

uint lane, team;
uint first_key[TOKENS], end_key[TOKENS]; // which keys a token sees, the second not included
vec4 query[QUERIES * PIECES * 2];
float largest[QUERIES], total[QUERIES];
vec4 sum[QUERIES * V_PIECES * 2];

// what the team takes next: keys and values of AT_ONCE cached tokens
uvec4 k[AT_ONCE * PIECES], v[AT_ONCE * V_PIECES];

#ifdef PLAIN
shared float lane_scores[QUERIES * AT_ONCE * LOCAL_SIZE]; // what each lane adds to its team's scores
#endif

// of a key that a token of the workgroup sees: with a window none before it may be read
uint seen_position(uint position, uint end) {
  return SEES_LAST ? clamp(position, first_key[0], end - 1) : min(position, end - 1);
}

bool is_seen(uint h, uint position, uint end) {
  uint t = h / HEADS;
  return position < min(end_key[t], end) && (!SEES_LAST || position >= first_key[t]);
}

float capped(float score) { return SOFTCAP != 0 ? softcapped(score, uintBitsToFloat(SOFTCAP)) : score; }

void load_keys(uint table, uint kv_head, uint base, uint end) {
  [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
    uint position = seen_position(base + i * TEAMS, end);
    uint unit = unit_of(table, kv_head, position);
    [[unroll]] for (uint p = 0; p < PIECES; p++) {
      k[i * PIECES + p] = load_key(unit, position % KV_BLOCK, min(lane + p * LANES, EIGHTS - 1));
    }
  }
}

void load_values(uint table, uint kv_head, uint base, uint end) {
  if (LATENT_DIM != 0) return;
  [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
    uint position = seen_position(base + i * TEAMS, end);
    uint unit = unit_of(table, kv_head, position);
    [[unroll]] for (uint p = 0; p < V_PIECES; p++) {
      v[i * V_PIECES + p] = load_value(unit, position % KV_BLOCK, min(lane + p * LANES, EIGHTS - 1));
    }
  }
}

// of latent vectors, which are keys and values
void take_values_of_keys() {
  [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
    [[unroll]] for (uint p = 0; p < V_PIECES; p++) v[i * V_PIECES + p] = k[i * PIECES + p];
  }
}

float largest_of_teams(uint h) {
  float most = team_largest[h];
  for (uint t = 1; t < TEAMS; t++) most = max(most, team_largest[t * QUERIES + h]);
  return most;
}

// Tokens `first` to `end` (not in it) of the sequence whose blocks begin at block_table[table]; keys and values from
// first + team on must have been loaded. The next ones are loaded as soon as their registers are free.
void attend(uint table, uint kv_head, uint first, uint end) {
  [[unroll]] for (uint h = 0; h < QUERIES; h++) {
    largest[h] = -1e30;
    total[h] = 0.0;
    [[unroll]] for (uint p = 0; p < V_PIECES * 2; p++) sum[h * V_PIECES * 2 + p] = vec4(0.0);
  }
  for (uint start = first; start < end; start += STRIDE) {
    uint base = start + team;
    bool goes_on = start + STRIDE < end;
    float weights[QUERIES * AT_ONCE]; // at first the scores
    replace_newest_keys(base, end);
    [[unroll]] for (uint h = 0; h < QUERIES; h++) {
      [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
        float score = 0.0;
        [[unroll]] for (uint p = 0; p < PIECES; p++) {
          uvec4 eight = k[i * PIECES + p];
          vec4 products = query[(h * PIECES + p) * 2] * first_half(eight, K_Q8_0);
          products += query[(h * PIECES + p) * 2 + 1] * second_half(eight, K_Q8_0);
          score += scale_of(eight, K_Q8_0) * (products.x + products.y + products.z + products.w);
        }
#ifdef PLAIN
        lane_scores[(h * AT_ONCE + i) * LOCAL_SIZE + team * LANES + lane] = score;
      }
    }
    barrier();
    [[unroll]] for (uint h = 0; h < QUERIES; h++) {
      [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
        uint from = (h * AT_ONCE + i) * LOCAL_SIZE + team * LANES;
        float score = 0.0;
        [[unroll]] for (uint l = 0; l < LANES; l++) score += lane_scores[from + l];
        weights[h * AT_ONCE + i] = is_seen(h, base + i * TEAMS, end) ? capped(score) : -1e30;
      }
    }
    barrier();
#else
        [[unroll]] for (uint m = 0; m < 5; m++) { // counted by addition, which is what Mesa unrolls
          if ((1u << m) < LANES) score += subgroupShuffleXor(score, 1u << m);
        }
        weights[h * AT_ONCE + i] = is_seen(h, base + i * TEAMS, end) ? capped(score) : -1e30;
      }
    }
#endif
    if (LATENT_DIM != 0) take_values_of_keys();
    if (goes_on) load_keys(table, kv_head, base + STRIDE, end);
    [[unroll]] for (uint h = 0; h < QUERIES; h++) {
      float new_largest = largest[h];
      [[unroll]] for (uint i = 0; i < AT_ONCE; i++) new_largest = max(new_largest, weights[h * AT_ONCE + i]);
      float decay = exp(largest[h] - new_largest);
      largest[h] = new_largest;
      total[h] *= decay;
      [[unroll]] for (uint p = 0; p < V_PIECES * 2; p++) sum[h * V_PIECES * 2 + p] *= decay;
      [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
        float weight = is_seen(h, base + i * TEAMS, end) ? exp(weights[h * AT_ONCE + i] - new_largest) : 0.0;
        total[h] += weight;
        weights[h * AT_ONCE + i] = weight;
      }
    }
    if (LATENT_DIM == 0) replace_newest_values(base, end);
    [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
      [[unroll]] for (uint h = 0; h < QUERIES; h++) {
        [[unroll]] for (uint p = 0; p < V_PIECES; p++) {
          uvec4 eight = v[i * V_PIECES + p];
          float factor = weights[h * AT_ONCE + i] * scale_of(eight, V_Q8_0);
          sum[(h * V_PIECES + p) * 2] += factor * first_half(eight, V_Q8_0);
          sum[(h * V_PIECES + p) * 2 + 1] += factor * second_half(eight, V_Q8_0);
        }
      }
    }
    if (goes_on) load_values(table, kv_head, base + STRIDE, end);
  }
  [[unroll]] for (uint h = 0; h < QUERIES; h++) {
    if (lane == 0) {
      team_largest[team * QUERIES + h] = largest[h];
      team_total[team * QUERIES + h] = total[h];
    }
    [[unroll]] for (uint p = 0; p < V_PIECES; p++) {
      uint eight = lane + p * LANES;
      if (eight >= V_EIGHTS) continue;
      uint to = team * OUT_FOURS + h * FOURS + 2 * eight;
      team_sum[to] = sum[(h * V_PIECES + p) * 2];
      team_sum[to + 1] = sum[(h * V_PIECES + p) * 2 + 1];
    }
  }
  barrier();
  for (uint i = team * LANES + lane; i < TEAMS * QUERIES; i += LOCAL_SIZE) {
    team_share[i] = exp(team_largest[i] - largest_of_teams(i % QUERIES));
  }
  barrier();
}

// the workgroup's sum of weights of a query
float merged_total(uint h) {
  float merged = 0.0;
  for (uint t = 0; t < TEAMS; t++) merged += team_share[t * QUERIES + h] * team_total[t * QUERIES + h];
  return merged;
}

// and its weighted values, four dimensions: four = query * FOURS + dimension / 4
vec4 merged_four(uint four) {
  vec4 merged = vec4(0.0);
  for (uint t = 0; t < TEAMS; t++) merged += team_share[t * QUERIES + four / FOURS] * team_sum[t * OUT_FOURS + four];
  return merged;
}
