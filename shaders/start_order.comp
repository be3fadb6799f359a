// start_order: whether a device starts the workgroups of dispatches in order, which chains lean on (lib/chain.glsl)
// bindings: order
// constants: local_size shared_words work most_polls
// push: number n_before
// dispatch: x = many more than run at once; no barrier between the dispatches, which have numbers from 0 on
// numerics: counts
// source: own
//
// Each workgroup counts that it has started, looks whether all n_before of the dispatch before have, and then works for
// a while, some eight times as long as others, so that parts of the device run ahead. One that was started while many
// of the dispatch before were still waiting for room sees that: they get none before somebody's work is done, and it
// polls no longer than that takes. It counts itself as late and goes on, so the test ends on every device.
#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint SHARED_WORDS = 1; // room that a workgroup takes
layout(constant_id = 2) const uint WORK = 64;        // atomics, one after the other
layout(constant_id = 3) const uint MOST_POLLS = 1;   // also atomics
layout(push_constant) uniform Push {
  uint number;
  uint n_before; // workgroups of the dispatch before; 0: there is none
};
#define APART 8 // words between counters, which lie in different sectors of memory
#define TALLIES 64
layout(std430, binding = 0) buffer Order {
  uint n_late;
  uint order_padding[APART - 1];
  uint tallies[TALLIES * APART]; // for work to be done
  uint started[];                // workgroups, by dispatch
};
shared uint room[SHARED_WORDS];

void main() {
  if (gl_LocalInvocationIndex == 0) {
    atomicAdd(started[number * APART], 1u);
    bool is_in_order = n_before == 0;
    for (uint polls = 0; polls < MOST_POLLS && !is_in_order; polls++) {
      is_in_order = atomicOr(started[(number - 1) * APART], 0u) >= n_before;
    }
    if (!is_in_order) atomicAdd(n_late, 1u);
    uint tally = gl_WorkGroupID.x;
    uint rounds = gl_WorkGroupID.x * 2654435761u >> 29 == 0 ? 8 * WORK : WORK;
    for (uint i = 0; i < rounds; i++) tally += atomicAdd(tallies[tally % TALLIES * APART], 1u);
    room[number % SHARED_WORDS] = tally % TALLIES;
  }
  barrier();
  if (room[number % SHARED_WORDS] >= TALLIES) n_late = 0; // never: so that the room is taken, until the work is done
}
