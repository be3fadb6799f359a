// What sums of weighted values become. Define SINKS_BINDING; the including file has the constant HAS_SINKS: whether each
// query head has one more score, its sink, which takes weight but has no value.
// Xiao et al. 2023, arXiv 2309.17453; gates: Qiu et al. 2025, arXiv 2505.06708.
layout(std430, binding = SINKS_BINDING) readonly buffer Sinks { float sinks[]; };

// the sum of weights exp(score - largest) of a head
float with_sink(float total, float largest, uint head) {
  return HAS_SINKS != 0 ? total + exp(sinks[head] - largest) : total;
}

vec4 gated(vec4 v, vec4 gate) { return v / (1.0 + exp(-gate)); }
