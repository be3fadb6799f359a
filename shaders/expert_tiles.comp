// expert_tiles: the slots of all rows, sorted by expert, and cut into tiles of one expert's
// bindings: routes tiles entries step
// constants: local_size n_experts n_used tile_size n_tiles
// push:
// dispatch: x = 1
// numerics: exact; the order of an expert's slots is any
// source: own
//
// A slot's number is row * N_USED + k. tiles[i] = (expert, its first place in entries, how many); unused tiles have none.
#version 450
#extension GL_GOOGLE_include_directive : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LOCAL_SIZE = 256;
layout(constant_id = 1) const uint N_EXPERTS = 128;
layout(constant_id = 2) const uint N_USED = 8;
layout(constant_id = 3) const uint TILE_SIZE = 32;
layout(constant_id = 4) const uint N_TILES = 1;
layout(std430, binding = 0) readonly buffer Routes { uint routes[]; };
layout(std430, binding = 1) writeonly buffer Tiles { uvec4 tiles[]; };
layout(std430, binding = 2) writeonly buffer Entries { uint entries[]; };
#define STEP_BINDING 3
#include "lib/step.glsl"

shared uint n_slots[N_EXPERTS]; // of an expert
shared uint next_place[N_EXPERTS];

uint expert_of(uint slot) { return min(routes[slot / N_USED * (2 * N_USED + 1) + slot % N_USED], N_EXPERTS - 1); }

void main() {
  uint self = gl_LocalInvocationID.x, n = n_rows * N_USED;
  for (uint e = self; e < N_EXPERTS; e += LOCAL_SIZE) n_slots[e] = 0;
  barrier();
  for (uint slot = self; slot < n; slot += LOCAL_SIZE) atomicAdd(n_slots[expert_of(slot)], 1u);
  barrier();
  for (uint e = self; e < N_EXPERTS; e += LOCAL_SIZE) {
    uint place = 0, tile = 0;
    for (uint before = 0; before < e; before++) {
      place += n_slots[before];
      tile += (n_slots[before] + TILE_SIZE - 1) / TILE_SIZE;
    }
    next_place[e] = place;
    for (uint done = 0; done < n_slots[e]; done += TILE_SIZE) {
      tiles[tile++] = uvec4(e, place + done, min(TILE_SIZE, n_slots[e] - done), 0);
    }
    if (e == N_EXPERTS - 1) {
      for (; tile < N_TILES; tile++) tiles[tile] = uvec4(0);
    }
  }
  barrier();
  for (uint slot = self; slot < n; slot += LOCAL_SIZE) entries[atomicAdd(next_place[expert_of(slot)], 1u)] = slot;
}
