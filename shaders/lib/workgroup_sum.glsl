// A sum over the workgroup; all of its invocations must come here, and between two sums to a barrier. Include after
// lib/subgroups.glsl.
shared float partial[128];

float sum_of_workgroup(float v) {
  float sum = sum_of_subgroup(v);
  if (LANE == 0) partial[SUBGROUP] = sum;
  barrier();
  sum = 0.0;
  for (uint i = 0; i < N_SUBGROUPS; i++) sum += partial[i];
  return sum;
}
