// route: the experts that each row takes, and their weights, from a router's logits
// bindings: logits selection_bias routes step
// constants: local_size n_experts n_used gating has_selection_bias n_groups n_groups_used by_logits is_normalized scale has_shared_gate
// push:
// dispatch: y = tokens
// numerics: float32; of equal scores the lower number wins
// source: Shazeer et al. 2017, arXiv 1701.06538; groups: DeepSeek-V3, arXiv 2412.19437
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 64;
layout(constant_id = 1) const uint N_EXPERTS = 128;
layout(constant_id = 2) const uint N_USED = 8;
layout(constant_id = 3) const uint GATING = 0;
layout(constant_id = 4) const uint HAS_SELECTION_BIAS = 0;
layout(constant_id = 5) const uint N_GROUPS = 1;
layout(constant_id = 6) const uint N_GROUPS_USED = 1;
layout(constant_id = 7) const uint BY_LOGITS = 0;
layout(constant_id = 8) const uint IS_NORMALIZED = 0;
layout(constant_id = 9) const uint SCALE = 0x3f800000; // 1.0
layout(constant_id = 10) const uint HAS_SHARED_GATE = 0;
layout(std430, binding = 0) readonly buffer Logits { float logits[]; };
layout(std430, binding = 1) readonly buffer SelectionBias { float selection_bias[]; };
layout(std430, binding = 2) writeonly buffer Routes { uint routes[]; };
#define STEP_BINDING 3
#include "lib/step.glsl"
#include "lib/routing.glsl"

void main() {
  uint row = gl_WorkGroupID.y, self = gl_LocalInvocationID.x, from = row * (N_EXPERTS + HAS_SHARED_GATE);
  if (row >= n_rows) return;
  for (uint e = self; e < 4 * EXPERT_FOURS; e += LOCAL_SIZE) keep_logit(e, logits[from + min(e, N_EXPERTS - 1)]);
  float shared_weight = HAS_SHARED_GATE != 0 ? sigmoid(logits[from + N_EXPERTS]) : 1.0;
  barrier();
  choose(self, row * (2 * N_USED + 1), shared_weight);
}
