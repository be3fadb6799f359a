// Chooses the experts of a row from its logits. The including file declares `uint routes[]`, LOCAL_SIZE and the constants
// N_EXPERTS, N_USED, GATING, N_GROUPS, N_GROUPS_USED, BY_LOGITS, IS_NORMALIZED, SCALE and HAS_SELECTION_BIAS, and
// `float selection_bias[]`. All invocations of a workgroup work on one row, and none uses subgroups.
#define SOFTMAX 0 // places in GATINGS of vkllm/gpu/program/kernels.py
#define SIGMOID 1
#define LEAST_SUM 0.00006103515625 // 2^-14
#define LOWEST (-3.4e38)

const uint GROUP_SIZE = N_EXPERTS / N_GROUPS;
shared float router_logits[N_EXPERTS];
shared float scores[N_EXPERTS];
shared float group_scores[N_GROUPS];
shared uint chosen[N_USED];
shared float gates[N_USED];

float sigmoid(float v) { return 1.0 / (1.0 + exp(-v)); }

// whether a is chosen before b; of equal scores the lower number comes first
bool is_before(float a, uint place_of_a, float b, uint place_of_b) {
  return a > b || (a == b && place_of_a < place_of_b);
}

// The two best scores of each group decide which groups are left; those of the others become the lowest.
void leave_best_groups(uint self) {
  for (uint group = self; group < N_GROUPS; group += LOCAL_SIZE) {
    float best = LOWEST, second = LOWEST;
    for (uint i = 0; i < GROUP_SIZE; i++) {
      float score = scores[group * GROUP_SIZE + i];
      second = score > best ? best : max(second, score);
      best = max(best, score);
    }
    group_scores[group] = GROUP_SIZE > 1 ? best + second : best;
  }
  barrier();
  for (uint e = self; e < N_EXPERTS; e += LOCAL_SIZE) {
    uint group = e / GROUP_SIZE, n_before = 0;
    for (uint g = 0; g < N_GROUPS; g++) n_before += uint(is_before(group_scores[g], g, group_scores[group], group));
    if (n_before >= N_GROUPS_USED) scores[e] = LOWEST;
  }
  barrier();
}

// All invocations come here after a barrier behind the last of router_logits. The routes of the row begin at `to`.
void choose(uint self, uint to, float shared_weight) {
  float largest = LOWEST, total = 1.0;
  if (GATING == SOFTMAX) {
    total = 0.0;
    for (uint e = 0; e < N_EXPERTS; e++) largest = max(largest, router_logits[e]);
    for (uint e = 0; e < N_EXPERTS; e++) total += exp(router_logits[e] - largest);
  }
  for (uint e = self; e < N_EXPERTS; e += LOCAL_SIZE) {
    float logit = router_logits[e], score = logit;
    if (BY_LOGITS == 0 && GATING == SOFTMAX) score = exp(logit - largest) / total;
    if (BY_LOGITS == 0 && GATING == SIGMOID) score = sigmoid(logit);
    scores[e] = HAS_SELECTION_BIAS != 0 ? score + selection_bias[e] : score;
  }
  for (uint k = self; k < N_USED; k += LOCAL_SIZE) chosen[k] = k; // an expert that there is, also where logits are NaN
  barrier();
  if (N_GROUPS > 1) leave_best_groups(self);
  for (uint e = self; e < N_EXPERTS; e += LOCAL_SIZE) {
    uint n_before = 0;
    for (uint other = 0; other < N_EXPERTS; other++) n_before += uint(is_before(scores[other], other, scores[e], e));
    if (n_before < N_USED) chosen[n_before] = e;
  }
  barrier();
  for (uint k = self; k < N_USED; k += LOCAL_SIZE) {
    float logit = router_logits[chosen[k]];
    gates[k] = GATING == SOFTMAX ? exp(logit - largest) / total : GATING == SIGMOID ? sigmoid(logit) : logit;
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
