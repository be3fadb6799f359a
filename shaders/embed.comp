// embed: x = scale * the rows of the token embedding for the step's tokens
// bindings: quants scales x step
// constants: local_size columns scale row_blocks
// push: first_row n_table_rows
// dispatch: x = any, y = tokens; of a table in parts, one dispatch a part, which has n_table_rows rows from first_row on
// formats: all
// numerics: exact dequantization; scale is sent as the bits of a float32
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(constant_id = 2) const uint SCALE = 0x3f800000; // 1.0
layout(constant_id = 3) const uint ROW_BLOCKS = 128; // of the table, whose last one may be padded
layout(push_constant) uniform Push {
  uint first_row;
  uint n_table_rows;
};
layout(std430, binding = 0) readonly buffer Quants { uvec4 quants[]; };
layout(std430, binding = 1) readonly buffer Scales { uint scales[]; };
layout(std430, binding = 2) writeonly buffer X { float x[]; };
#define STEP_BINDING 3
#include "lib/step.glsl"
#include "formats/format.glsl"

void main() {
  uint row = gl_WorkGroupID.y;
  if (row >= n_rows) return;
  uint token = rows[row].x - first_row; // wraps around for those before
  if (token >= n_table_rows) return;
  prepare_weights();
  for (uint c = gl_GlobalInvocationID.x; c < COLUMNS; c += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
    float v = value(token * ROW_BLOCKS + c / 32, c % 32);
    x[row * COLUMNS + c] = SCALE != 0x3f800000 ? uintBitsToFloat(SCALE) * v : v;
  }
}
