// cap * tanh(v / cap). Vulkan bounds the error of tanh no better than this does, and not all drivers return 1 far out.
float softcapped(float v, float cap) { return cap - 2.0 * cap / (1.0 + exp(v * (2.0 / cap))); }
