// Teams of LANES neighbouring invocations: a team keeps a column of a state, its numbers spread over the lanes four by
// four. LANES is a power of two, at most a subgroup, and 1 in the _plain variants, where nothing is exchanged. The
// constants LANES and SIZE (of a column) are the including file's.
#ifdef PLAIN
#define TEAM_LANE 0u
#define TEAM (gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_LocalInvocationIndex)
#define SUM_OF_TEAM(v) v
#else
#define INVOCATION (gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID)
#define TEAM_LANE (gl_SubgroupInvocationID % LANES)
#define TEAM (INVOCATION / LANES)
#define SUM_OF_TEAM(v) sum_of_team(v)
float sum_of_team(float v) {
  [[unroll]] for (uint i = 1; i < LANES; i *= 2) v += subgroupShuffleXor(v, i);
  return v;
}
vec4 sum_of_team(vec4 v) {
  [[unroll]] for (uint i = 1; i < LANES; i *= 2) v += subgroupShuffleXor(v, i);
  return v;
}
#endif
const uint OWN = SIZE / 4 / LANES; // fours of a lane
#define FOUR(i) ((i) * LANES + TEAM_LANE) // which of the column's fours is a lane's i-th
