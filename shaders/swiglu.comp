// swiglu: y = silu(gate) * up, as float32 and as q16 blocks
// bindings: gate_up y y_q16 y_scales step
// constants: local_size columns
// push:
// dispatch: x = columns / 32 / local_size, y = tokens; gate_up has 2 * columns columns, gate first
// numerics: float32
// source: Shazeer 2020, arXiv 2002.05202
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 11008;
layout(std430, binding = 0) readonly buffer GateUp { float gate_up[]; };
layout(std430, binding = 1) writeonly buffer Y { float y[]; };
layout(std430, binding = 2) writeonly buffer YQ16 { uvec4 y_q16[]; };
layout(std430, binding = 3) writeonly buffer YScales { vec2 y_scales[]; };
#define STEP_BINDING 4
#include "lib/step.glsl"
#include "lib/q16.glsl"

void main() {
  uint row = gl_WorkGroupID.y;
  uint block = gl_GlobalInvocationID.x;
  if (row >= n_rows || block >= COLUMNS / 32) return;
  float v[32];
  for (uint i = 0; i < 32; i++) {
    uint c = 32 * block + i;
    float gate = gate_up[2 * row * COLUMNS + c];
    v[i] = gate / (1.0 + exp(-gate)) * gate_up[(2 * row + 1) * COLUMNS + c];
    y[row * COLUMNS + c] = v[i];
  }
  store_q16(row * (COLUMNS / 32) + block, v);
}
