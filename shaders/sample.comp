// sample: draws a token: top-k, top-p, min-p, temperature; kept on the device for the next step and written to the host
// bindings: largest next_token chosen step
// constants: local_size n_vocab n_lists
// dispatch: x = 1, y = results (with several, those that are not drawn are left out), local_size at least 64; n_lists: of
//   candidates of all ranks (all_gather), from which greedy results are chosen too; 0: those of n_vocab logits
// numerics: that of `pick` in vkllm/engine/sampler.py, step by step: a float32 difference and a product, rounded to
// nearest, then integers only; so both choose the same token of the same logits
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint N_VOCAB = 32000;
layout(constant_id = 2) const uint GATHERED_LISTS = 0;
layout(std430, binding = 0) readonly buffer Largest { uvec2 largest[]; };
layout(std430, binding = 1) writeonly buffer NextToken { uint next_token[]; };
layout(std430, binding = 2) writeonly buffer Chosen { uint chosen[]; };
#define STEP_BINDING 3
#include "lib/step.glsl"
#include "lib/largest.glsl"

#define N_LISTS 32 // together 16 KiB, the shared memory that every device has
shared uvec2 candidates[N_LISTS * TOP_K];
const uvec2 NOTHING = uvec2(0u, 0xffffffffu); // behind every candidate

// 2^-f = c0 - f (c1 - f (c2 - ...)) for f in [0, 1), in units of 2^-31; error 0.4 2^-26
const uint EXP2[7] = uint[](2147483648u, 1488522224u, 515881616u, 119183791u, 20609763u, 2774097u, 246919u);
const uint FRACTION_BITS = 26;
#define KEEP_ALL 0xffffffffu // a top_p of 1
const float MAX_HALVINGS = 1744830464.0; // 26 * 2^26: what is behind so far has no weight

// Leaves the 64 largest of all lists in the first one, in falling order. The larger ones of a list and of another in
// reverse are a bitonic sequence: Shanbhag et al. 2018, doi 10.1145/3183713.3183735
void merge_lists() {
  for (uint n = N_LISTS / 2; n > 0; n /= 2) {
    for (uint i = gl_LocalInvocationID.x; i < n * TOP_K; i += LOCAL_SIZE) {
      uvec2 other = candidates[n * TOP_K + (i ^ (TOP_K - 1))];
      if (precedes(other, candidates[i])) candidates[i] = other;
    }
    barrier();
    for (uint stride = TOP_K / 2; stride > 0; stride /= 2) {
      for (uint pair = gl_LocalInvocationID.x; pair < n * TOP_K / 2; pair += LOCAL_SIZE) {
        uint first = 2 * pair - (pair & (stride - 1));
        uvec2 a = candidates[first], b = candidates[first + stride];
        if (precedes(b, a)) {
          candidates[first] = b;
          candidates[first + stride] = a;
        }
      }
      barrier();
    }
  }
}

uint high_product(uint a, uint b) {
  uint high, low;
  umulExtended(a, b, high, low);
  return high;
}

// 2^25 for the largest logit, half for each halving behind it, to the nearest integer.
uint weight_of(float behind, float slope) {
  precise float halvings = behind * slope;
  if (halvings >= MAX_HALVINGS) return 0;
  uint fixed_point = halvings > 0.0 ? uint(halvings) : 0;
  uint fraction = fixed_point << (32 - FRACTION_BITS);
  uint power = EXP2[6];
  [[unroll]] for (int i = 5; i >= 0; i--) power = EXP2[i] - high_product(power, fraction);
  uint shift = 6 + (fixed_point >> FRACTION_BITS);
  return (power + (1u << (shift - 1))) >> shift;
}

// The sums of the first `rank` weights (x) and of all (y). The weights lie behind the first list.
uvec2 sums(uint rank, uint weight) {
  barrier();
  if (rank < TOP_K) candidates[TOP_K + rank].x = weight;
  barrier();
  uvec2 sum = uvec2(0);
  for (uint i = 0; i < TOP_K; i++) {
    uint other = candidates[TOP_K + i].x;
    sum += uvec2(i < rank ? other : 0, other);
  }
  return sum;
}

void main() {
  uint result = gl_WorkGroupID.y;
  uint left_out = RESULT_LOGITS | (GATHERED_LISTS == 0 ? RESULT_GREEDY : 0);
  if (gl_NumWorkGroups.y > 1 && (result >= n_results || (step_results[2 * result].z & left_out) != 0)) return;
  uvec4 of_result = step_results[2 * result], draw = step_results[2 * result + 1];
  // one of each workgroup of top_logits
  uint n_lists = GATHERED_LISTS != 0 ? GATHERED_LISTS : (N_VOCAB + TOP_LOGITS - 1) / TOP_LOGITS;
  uint first = result * n_lists * TOP_K;
  uint n_done = 0;
  for (uint n_kept = 0; n_done < n_lists; n_kept = 1) { // the first list stays from pass to pass
    for (uint i = n_kept * TOP_K + gl_LocalInvocationID.x; i < N_LISTS * TOP_K; i += LOCAL_SIZE) {
      uint from = (n_done - n_kept) * TOP_K + i;
      candidates[i] = from < n_lists * TOP_K ? largest[first + from] : NOTHING;
    }
    barrier();
    merge_lists();
    n_done += N_LISTS - n_kept;
  }

  uint rank = gl_LocalInvocationID.x;
  uvec2 own = candidates[min(rank, TOP_K - 1)];
  precise float behind = logit_of(candidates[0].x) - logit_of(own.x);
  bool is_kept = rank < min(of_result.w, min(TOP_K, N_VOCAB));

  uint weight = is_kept ? weight_of(behind, uintBitsToFloat(0x4cb8aa3bu)) : 0; // log2(e) 2^26: temperature 1
  uvec2 sum = sums(rank, weight);
  bool is_in_top_p = rank == 0 || draw.x == KEEP_ALL || sum.x < high_product(sum.y, draw.x);
  is_kept = is_kept && is_in_top_p && weight >= draw.y;

  weight = is_kept ? weight_of(behind, uintBitsToFloat(draw.z)) : 0;
  sum = sums(rank, weight);
  uint place = high_product(sum.y, draw.w);
  bool is_likeliest = GATHERED_LISTS != 0 && (of_result.z & RESULT_GREEDY) != 0;
  if (is_likeliest ? rank == 0 : rank < TOP_K && sum.x <= place && place < sum.x + weight) {
    if ((of_result.z & RESULT_LAST) != 0) next_token[of_result.y] = own.y;
    chosen[step_slot * MAX_NARROW + result] = own.y;
  }
}
