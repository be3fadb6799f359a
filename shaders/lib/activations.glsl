// The activations of feed-forward layers, of a number or a vec4. The including file has the constant ACTIVATION, a place
// in ACTIVATIONS of vkllm/gpu/program/kernels.py. No exp of these overflows to a NaN.
// silu: Elfwing et al. 2017, arXiv 1702.03118. gelu, in its form with tanh: Hendrycks and Gimpel 2016, arXiv 1606.08415;
// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)). relu2: So et al. 2021, arXiv 2109.08668.
// swiglu_oai, only with gates: gpt-oss (OpenAI 2025, arXiv 2508.10925); UP_FACTOR is what the other half becomes.
#define SILU 1
#define GELU 2
#define RELU2 3
#define SWIGLU_OAI 4
#define SIGMOID_TIMES(v, u) ((v) / (1.0 + exp(-(u))))
#define GELU_OF(v) SIGMOID_TIMES(v, 1.5957691216 * (v) * (1.0 + 0.044715 * (v) * (v)))
#define ACTIVATED(v) \
  (ACTIVATION == SILU         ? SIGMOID_TIMES(v, v) \
   : ACTIVATION == GELU       ? GELU_OF(v) \
   : ACTIVATION == SWIGLU_OAI ? SIGMOID_TIMES(min(v, 7.0), 1.702 * min(v, 7.0)) \
                              : max(v, 0.0) * max(v, 0.0))
#define UP_FACTOR(u) (ACTIVATION == SWIGLU_OAI ? clamp(u, -7.0, 7.0) + 1.0 : (u))
