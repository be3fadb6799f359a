// score: the log-probability of a given token under each row of logits, and the log of the sum that it is made with
// bindings: logits targets logprobs log_sums
// constants: local_size n_vocab
// push: first_row
// dispatch: x = rows (logits' row i is scored for target first_row + i)
// requires: local_size a power of two
// numerics: float32 log of a sum of exponentials, largest logit first
#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint N_VOCAB = 32000;
layout(push_constant) uniform Push { uint first_row; };
layout(std430, binding = 0) readonly buffer Logits { float logits[]; };
layout(std430, binding = 1) readonly buffer Targets { uint targets[]; };
layout(std430, binding = 2) writeonly buffer Logprobs { float logprobs[]; };
layout(std430, binding = 3) writeonly buffer LogSums { float log_sums[]; };

shared float partial[LOCAL_SIZE];

void main() {
  uint self = gl_LocalInvocationID.x;
  uint start = gl_WorkGroupID.x * N_VOCAB;
  float largest = -3.4e38;
  for (uint i = self; i < N_VOCAB; i += LOCAL_SIZE) largest = max(largest, logits[start + i]);
  partial[self] = largest;
  for (uint stride = LOCAL_SIZE / 2; stride > 0; stride /= 2) {
    barrier();
    if (self < stride) partial[self] = max(partial[self], partial[self + stride]);
  }
  barrier();
  largest = partial[0];
  barrier();

  float sum = 0.0;
  for (uint i = self; i < N_VOCAB; i += LOCAL_SIZE) sum += exp(logits[start + i] - largest);
  partial[self] = sum;
  for (uint stride = LOCAL_SIZE / 2; stride > 0; stride /= 2) {
    barrier();
    if (self < stride) partial[self] += partial[self + stride];
  }
  if (self == 0) {
    uint row = first_row + gl_WorkGroupID.x;
    logprobs[row] = logits[start + min(targets[row], N_VOCAB - 1)] - largest - log(partial[0]);
    log_sums[row] = largest + log(partial[0]);
  }
}
