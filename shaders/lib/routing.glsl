// Chooses the experts of a row from its logits. The including file declares `uint routes[]`, LOCAL_SIZE and the constants
// N_EXPERTS, N_USED, GATING, N_GROUPS, N_GROUPS_USED, BY_LOGITS, IS_NORMALIZED, SCALE and HAS_SELECTION_BIAS, and
// `float selection_bias[]`. All invocations of a workgroup work on one row, and none uses subgroups.
#define SOFTMAX 0 // places in GATINGS of vkllm/gpu/program/kernels.py
#define SIGMOID 1
#define LEAST_SUM 0.00006103515625 // 2^-14
#define LOWEST (-3.4e38)
#define AT_A_TIME 4 // fours whose loads are under way together

const uint EXPERT_FOURS = (N_EXPERTS + 4 * AT_A_TIME - 1) / (4 * AT_A_TIME) * AT_A_TIME; // the last ones are padding
const uint GROUP_SIZE = N_EXPERTS / N_GROUPS;
shared vec4 router_logits[EXPERT_FOURS];
shared vec4 powers[EXPERT_FOURS];
shared vec4 scores[EXPERT_FOURS];
shared float group_scores[N_GROUPS];
shared uint chosen[N_USED];
shared float gates[N_USED];

#define OF_EXPERT(array, e) array[(e) / 4][(e) % 4]

float sigmoid(float v) { return 1.0 / (1.0 + exp(-v)); }

// The two best scores of each group decide which groups are left; those of the others become the lowest.
void leave_best_groups(uint self) {
  for (uint group = self; group < N_GROUPS; group += LOCAL_SIZE) {
    float best = LOWEST, second = LOWEST;
    for (uint i = 0; i < GROUP_SIZE; i++) {
      float score = OF_EXPERT(scores, group * GROUP_SIZE + i);
      second = score > best ? best : max(second, score);
      best = max(best, score);
    }
    group_scores[group] = GROUP_SIZE > 1 ? best + second : best;
  }
  barrier();
  for (uint e = self; e < N_EXPERTS; e += LOCAL_SIZE) {
    uint group = e / GROUP_SIZE, n_before = 0;
    float own = group_scores[group];
    for (uint g = 0; g < N_GROUPS; g++) {
      n_before += uint(group_scores[g] > own || (group_scores[g] == own && g < group));
    }
    if (n_before >= N_GROUPS_USED) OF_EXPERT(scores, e) = LOWEST;
  }
  barrier();
}

// how many experts come before e; of equal scores the lower number comes first
uint n_before(uint e) {
  float own = OF_EXPERT(scores, e);
  uvec4 n = uvec4(0);
  for (uint first = 0; first < EXPERT_FOURS; first += AT_A_TIME) {
    [[unroll]] for (uint i = 0; i < AT_A_TIME; i++) {
      vec4 others = scores[first + i];
      uvec4 places = 4 * (first + i) + uvec4(0, 1, 2, 3);
      n += uvec4(greaterThan(others, vec4(own))) |
           (uvec4(equal(others, vec4(own))) & uvec4(lessThan(places, uvec4(e))));
    }
  }
  return n.x + n.y + n.z + n.w;
}

float largest_logit() {
  vec4 largest = vec4(LOWEST);
  for (uint first = 0; first < EXPERT_FOURS; first += AT_A_TIME) {
    [[unroll]] for (uint i = 0; i < AT_A_TIME; i++) largest = max(largest, router_logits[first + i]);
  }
  return max(max(largest.x, largest.y), max(largest.z, largest.w));
}

float sum_of_powers() {
  vec4 sum = vec4(0.0);
  for (uint first = 0; first < EXPERT_FOURS; first += AT_A_TIME) {
    [[unroll]] for (uint i = 0; i < AT_A_TIME; i++) sum += powers[first + i];
  }
  return (sum.x + sum.y) + (sum.z + sum.w);
}

void keep_logit(uint e, float logit) { OF_EXPERT(router_logits, e) = e < N_EXPERTS ? logit : LOWEST; }

// All invocations come here after a barrier behind keep_logit of all EXPERT_FOURS. The routes of the row begin at `to`.
void choose(uint self, uint to, float shared_weight) {
  float largest = LOWEST, total = 1.0;
  if (GATING == SOFTMAX) {
    largest = largest_logit();
    for (uint e = self; e < 4 * EXPERT_FOURS; e += LOCAL_SIZE) {
      OF_EXPERT(powers, e) = e < N_EXPERTS ? exp(OF_EXPERT(router_logits, e) - largest) : 0.0;
    }
    barrier();
    total = sum_of_powers();
  }
  for (uint e = self; e < 4 * EXPERT_FOURS; e += LOCAL_SIZE) {
    float logit = OF_EXPERT(router_logits, e), score = logit;
    if (BY_LOGITS == 0 && GATING == SOFTMAX) score = OF_EXPERT(powers, e) / total;
    if (BY_LOGITS == 0 && GATING == SIGMOID) score = sigmoid(logit);
    if (HAS_SELECTION_BIAS != 0) score += selection_bias[min(e, N_EXPERTS - 1)];
    OF_EXPERT(scores, e) = e < N_EXPERTS ? score : LOWEST;
  }
  for (uint k = self; k < N_USED; k += LOCAL_SIZE) chosen[k] = k; // an expert that there is, also where logits are NaN
  barrier();
  if (N_GROUPS > 1) leave_best_groups(self);
  for (uint e = self; e < N_EXPERTS; e += LOCAL_SIZE) {
    uint place = n_before(e);
    if (place < N_USED) chosen[place] = e;
  }
  barrier();
  for (uint k = self; k < N_USED; k += LOCAL_SIZE) {
    float logit = OF_EXPERT(router_logits, chosen[k]);
    gates[k] = GATING == SOFTMAX   ? OF_EXPERT(powers, chosen[k]) / total
               : GATING == SIGMOID ? sigmoid(logit)
                                   : logit;
  }
  barrier();
  for (uint k = self; k < N_USED; k += LOCAL_SIZE) {
    float weight = gates[k], sum = 0.0;
    if (GATING > SIGMOID) { // softmax of the chosen
      float most = LOWEST;
      [[unroll]] for (uint i = 0; i < N_USED; i++) most = max(most, gates[i]);
      [[unroll]] for (uint i = 0; i < N_USED; i++) sum += exp(gates[i] - most);
      weight = exp(weight - most) / sum;
      sum = 1.0;
    } else {
      [[unroll]] for (uint i = 0; i < N_USED; i++) sum += gates[i];
    }
    if (IS_NORMALIZED != 0) weight /= max(sum, LEAST_SUM);
    routes[to + k] = chosen[k];
    routes[to + N_USED + k] = floatBitsToUint(weight * uintBitsToFloat(SCALE));
  }
  if (self == 0) routes[to + 2 * N_USED] = floatBitsToUint(shared_weight);
}
