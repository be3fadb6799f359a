// move_rows: moves the rows of a step between an activation and the place that the step has in host memory
// bindings: x host step
// constants: local_size columns is_sent
// dispatch: x = columns / local_size (a smaller dispatch loops), y = rows
// numerics: copies
#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint COLUMNS = 1;
layout(constant_id = 2) const uint IS_SENT = 0; // from the activation to the host
#define STEP_BINDING 2
#include "lib/step.glsl"
layout(std430, binding = 0) buffer X { float x[]; };       // (rows, columns)
layout(std430, binding = 1) buffer Host { float host[]; }; // (slots, MAX_ROWS, columns)

void main() {
  uint row = gl_WorkGroupID.y;
  if (row >= n_rows) return;
  uint first = row * COLUMNS, stride = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  uint first_of_host = (step_slot * MAX_ROWS + row) * COLUMNS;
  for (uint i = gl_GlobalInvocationID.x; i < COLUMNS; i += stride) {
    if (IS_SENT != 0) host[first_of_host + i] = x[first + i];
    else x[first + i] = host[first_of_host + i];
  }
}
