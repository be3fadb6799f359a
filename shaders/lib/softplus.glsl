// ln(1 + exp(v)), without overflow and exact where it is small.
float softplus(float v) {
  float e = exp(-abs(v));
  return max(v, 0.0) + (e < 0.01 ? e * (1.0 - e * (0.5 - e / 3.0)) : log(1.0 + e));
}
