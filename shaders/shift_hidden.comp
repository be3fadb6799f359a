// shift_hidden: of each row of a step, what the model made of the row before it; and keeps what it made of each row
// bindings: hidden kept shifted step
// constants: local_size columns
// push: keeps
// dispatch: x = columns / local_size (a smaller dispatch loops), y = tokens; first with keeps = 0, which reads kept, then 1
// numerics: copies
//
// kept has MAX_NARROW rows for each sequence: of the rows of its last step, or, of a wide step, of the last row, which
// comes first. Before a sequence's first row there are zeros.
#version 450
#extension GL_GOOGLE_include_directive : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 4096;
layout(push_constant) uniform Push { uint keeps; };
layout(std430, binding = 0) readonly buffer Hidden { float hidden[]; };
layout(std430, binding = 1) buffer Kept { float kept[]; };
layout(std430, binding = 2) writeonly buffer Shifted { float shifted[]; };
#define STEP_BINDING 3
#include "lib/step.glsl"

void main() {
  uint row = gl_WorkGroupID.y;
  if (row >= n_rows) return;
  uvec4 part = step_parts[part_of_row(row)];
  uint place = row - part.x, first_kept = (part.w >> 16) * MAX_NARROW;
  bool is_wide = part.y > MAX_NARROW;
  if (keeps != 0 && is_wide && place + 1 != part.y) return;
  uint target = first_kept + (is_wide ? 0 : place), source = first_kept + (part.w & 0xffff) - 1;
  uint stride = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  for (uint c = gl_GlobalInvocationID.x; c < COLUMNS; c += stride) {
    if (keeps != 0) {
      kept[target * COLUMNS + c] = hidden[row * COLUMNS + c];
    } else if (place != 0) {
      shifted[row * COLUMNS + c] = hidden[(row - 1) * COLUMNS + c];
    } else {
      shifted[row * COLUMNS + c] = (part.w & 0xffff) != 0 ? kept[source * COLUMNS + c] : 0.0;
    }
  }
}
