// Candidates for a token: (key, index). Keys are ordered like the logits; of equal logits the lowest index comes first.
#define TOP_K 64
#define TOP_LOGITS 2048

uint key_of(uint logit_bits) {
  if (logit_bits == 0x80000000u) return logit_bits; // -0 equals 0
  return logit_bits >= 0x80000000u ? ~logit_bits : logit_bits | 0x80000000u;
}

float logit_of(uint key) { return uintBitsToFloat(key >= 0x80000000u ? key & 0x7fffffffu : ~key); }

bool precedes(uvec2 a, uvec2 b) { return a.x > b.x || (a.x == b.x && a.y < b.y); }
