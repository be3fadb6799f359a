"""Whether a device may chain dispatches: whether it starts their workgroups in order, found by a test.

In a chain (shaders/lib/chain.glsl) a workgroup waits for all of the dispatch before. If it could take the room that one
of them still needs to start, both would wait for ever. Vulkan guarantees no order, so it is tested whenever a model is
loaded, which takes some hundredths of a second. `gpu/program/choices.py` says which devices are tested at all.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS

_COUNTERS_APART = 8
_FIRST_COUNTER = _COUNTERS_APART * 65
"""Words of `Order` in shaders/start_order.comp."""

_ROUNDS = "wide", "narrow", "wide", "wide", "narrow", "narrow"
"""Kinds of dispatches: a narrow workgroup finds room where a wide one has to wait for it."""

_REPEATS = 2

_GROUPS_PER_CORE = {"wide": 64, "narrow": 256}
"""A core has room for 4 and for 32 of them, on the GPUs that are tried."""

_DEFAULT_CORES = 2

_WORK, _POLLS = 128, 128
"""Atomics that a workgroup executes as its work (some execute eight times as many), and polls before it counts itself
as late, about 0.1 ms: enough for a workgroup that has already started to count itself, too short for one that waits for
room."""


def can_chain(device: Device) -> bool:
    """Whether dispatches may wait for each other in the shader on this device, which has to have the modules for that.
    Raises DeviceError."""
    has_modules = device.has_integer_dot or not device.has_memory_model
    return has_modules and not is_off() and starts_in_order(device)


def is_off() -> bool:
    """Whether VKLLM_CHAINS switches chains off, so that the driver orders all dispatches."""
    return os.environ.get("VKLLM_CHAINS", "").casefold() in ("off", "0", "no")


def starts_in_order(device: Device) -> bool:
    """Whether every workgroup starts after all workgroups of earlier dispatches, in two of three tries.

    On a GPU that is busy with other processes, one try may fail. Raises DeviceError.
    """
    n_found = {True: 0, False: 0}
    while max(n_found.values()) < 2:
        n_found[n_late(device, list(_ROUNDS) * _REPEATS) == 0] += 1
    return n_found[True] == 2


def n_late(device: Device, kinds: list[str], order: list[int] | None = None) -> int:
    """How many workgroups started before all of the previous dispatch had; all of them if the device counts wrongly.
    Raises DeviceError.

    kinds: of the dispatches, by number. order: numbers in the order in which they are recorded, for tests.
    """
    kernel, info = KERNELS["start_order"], device.info
    sizes = {"wide": min(512, info.max_workgroup_invocations), "narrow": min(64, info.max_workgroup_invocations)}
    shared_words = {"wide": info.max_shared_bytes // 4, "narrow": 1}
    n_cores, most = info.n_cores or _DEFAULT_CORES, info.max_groups[0]
    n_groups = {kind: min(n * n_cores, most) for kind, n in _GROUPS_PER_CORE.items()}
    n_words = _FIRST_COUNTER + _COUNTERS_APART * len(kinds)
    counters, seen = device.buffer(n_words), device.buffer(n_words, is_host=True)
    assert seen.words is not None
    tried = [
        device.dispatch(
            kernel,
            (counters,),
            constants=(sizes[kind], shared_words[kind], _WORK, _POLLS),
            groups=(n_groups[kind], 1),
            push=(number, n_groups[kinds[number - 1]] if number else 0),
            is_independent=True,
        )
        for number, kind in enumerate(kinds)
    ]
    clear, read = (
        device.dispatch(KERNELS["copy_words"], pair, constants=(64,), groups=(1, 1), push=(n_words, 0, 0))
        for pair in ((seen, counters), (counters, seen))
    )
    first, *others = [tried[number] for number in order or range(len(kinds))]
    device.run([clear, replace(first, is_independent=False), *others, read])
    started = seen.words[_FIRST_COUNTER::_COUNTERS_APART][: len(kinds)]
    counts_right = np.array_equal(started, [n_groups[kind] for kind in kinds])
    return int(seen.words[0]) if counts_right else sum(n_groups[kind] for kind in kinds)
