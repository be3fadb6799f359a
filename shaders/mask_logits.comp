// mask_logits: leaves an answer the tokens that its grammar allows, whose bits are set; the others' logits become -inf
// bindings: logits masks
// constants: local_size n_vocab
// push: first_word
// dispatch: x = logits / local_size (a smaller dispatch loops)
// numerics: exact; token t is bit t % 32 of word first_word + t / 32
#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint N_VOCAB = 32000;
layout(push_constant) uniform Push { uint first_word; };
layout(std430, binding = 0) writeonly buffer Logits { uint logits[]; }; // as bits: no compiler may take -inf away
layout(std430, binding = 1) readonly buffer Masks { uint masks[]; };    // in host memory

void main() {
  uint stride = gl_NumWorkGroups.x * LOCAL_SIZE;
  for (uint i = gl_GlobalInvocationID.x; i < N_VOCAB; i += stride) {
    uint is_allowed = masks[first_word + i / 32] >> (i % 32) & 1u;
    if (is_allowed == 0) logits[i] = 0xff800000u;
  }
}
