"""Which memory type a tier takes, on the lists of drivers that are not there."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from vkllm.gpu.layer import LIBRARY, build
from vkllm.gpu.layer.memory import TIERS, LayerTier

MIB, GIB = 2**20, 2**30
DEVICE, VISIBLE, COHERENT, CACHED = 1, 2, 4, 8
HOST = VISIBLE | COHERENT
LAZY, PROTECTED, AMD_COHERENT, AMD_UNCACHED = 0x10, 0x20, 0x40, 0x80


class _Type(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint32), ("heap", ctypes.c_uint32)]


class _Heap(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint64), ("flags", ctypes.c_uint32)]


class _MemoryProperties(ctypes.Structure):
    """VkPhysicalDeviceMemoryProperties."""

    _fields_ = [
        ("n_types", ctypes.c_uint32),
        ("types", _Type * 32),
        ("n_heaps", ctypes.c_uint32),
        ("heaps", _Heap * 16),
    ]


@dataclass(frozen=True)
class Machine:
    """heaps: size and whether it is device-local. types: property flags and heap, in the driver's order."""

    heaps: tuple[tuple[int, bool], ...]
    types: tuple[tuple[int, int], ...]


# Orders as Mesa and NVIDIA report them; 32-bit and AMD-coherent doubles included, sizes are examples.
RADV_APU = Machine(
    ((5 * GIB, False), (10 * GIB, True)),
    (
        (DEVICE, 1), (DEVICE, 1), (HOST, 0), (DEVICE | HOST, 1), (DEVICE | HOST, 1), (HOST | CACHED, 0),
        (HOST | CACHED, 0), (DEVICE | AMD_COHERENT | AMD_UNCACHED, 1), (HOST | AMD_COHERENT | AMD_UNCACHED, 0),
        (HOST | CACHED | AMD_COHERENT | AMD_UNCACHED, 0),
    ),
)  # fmt: skip
RADV_REBAR = Machine(
    ((24 * GIB, True), (32 * GIB, False)),
    ((DEVICE, 0), (DEVICE, 0), (HOST, 1), (DEVICE | HOST, 0), (DEVICE | HOST, 0), (HOST | CACHED, 1)),
)
RADV_SMALL_BAR = Machine(
    ((7936 * MIB, True), (4 * GIB, False), (256 * MIB, True)),
    ((DEVICE, 0), (DEVICE, 0), (HOST, 1), (DEVICE | HOST, 2), (DEVICE | HOST, 2), (HOST | CACHED, 1)),
)
NVIDIA_REBAR = Machine(
    ((24 * GIB, True), (16 * GIB, False)),
    ((0, 1), (DEVICE, 0), (HOST, 1), (HOST | CACHED, 1), (DEVICE | HOST, 0)),
)
NVIDIA_SMALL_BAR = Machine(
    ((12 * GIB, True), (16 * GIB, False), (246 * MIB, True)),
    ((0, 1), (DEVICE, 0), (HOST, 1), (HOST | CACHED, 1), (DEVICE | HOST, 2)),
)
ANV = Machine(((12 * GIB, True),), ((DEVICE, 0), (DEVICE | HOST, 0), (DEVICE | HOST | CACHED, 0)))
LAVAPIPE = Machine(((2 * GIB, True),), ((DEVICE | HOST | CACHED, 0),))
ODD = Machine(((GIB, True),), ((DEVICE | LAZY, 0), (DEVICE | PROTECTED, 0), (DEVICE | VISIBLE, 0), (DEVICE | HOST, 0)))


def chosen(
    machine: Machine, tier: int, n_bytes: int, room: Sequence[int] | None = None, type_bits: int = 2**32 - 1
) -> int:
    """The type that the layer chooses. room: bytes free in each heap; None: whatever they have."""
    build.build()
    choose = ctypes.CDLL(str(LIBRARY)).vkllm_layer_choose_type
    choose.restype = ctypes.c_int32
    choose.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64]
    memory = _MemoryProperties(n_types=len(machine.types), n_heaps=len(machine.heaps))
    for i, (flags, heap) in enumerate(machine.types):
        memory.types[i] = _Type(flags, heap)
    for i, (size, is_local) in enumerate(machine.heaps):
        memory.heaps[i] = _Heap(size, int(is_local))
    rooms = None if room is None else (ctypes.c_uint64 * 16)(*room)
    found: int = choose(ctypes.byref(memory), rooms, tier, type_bits, n_bytes)
    return found


@pytest.mark.parametrize(
    ("machine", "local", "host", "readback"),
    [
        (RADV_APU, 0, 2, 5),
        (RADV_REBAR, 0, 2, 5),
        (RADV_SMALL_BAR, 0, 2, 5),
        (NVIDIA_REBAR, 1, 2, 3),
        (NVIDIA_SMALL_BAR, 1, 2, 3),
        (ANV, 0, 1, 2),
        (LAVAPIPE, 0, 0, 0),
        (ODD, 2, 3, 3),
    ],
)
def test_each_tier_takes_the_type_that_is_best_for_it_on_each_driver(
    machine: Machine, local: int, host: int, readback: int
) -> None:
    room = [size for size, _ in machine.heaps]
    found = tuple(chosen(machine, tier, MIB, room) for tier in range(len(TIERS)))
    assert found == (local, host, readback)
    assert found == tuple(chosen(machine, tier, MIB) for tier in range(len(TIERS)))


@pytest.mark.parametrize(
    ("machine", "tier", "room", "n_bytes", "expected"),
    [
        # A full card gives nothing; its window is the last of its memory, and not for what is larger.
        (NVIDIA_SMALL_BAR, "local", (100 * MIB, 8 * GIB, 246 * MIB), 200 * MIB, 4),
        (NVIDIA_SMALL_BAR, "local", (100 * MIB, 8 * GIB, 246 * MIB), 300 * MIB, -1),
        # Host memory does not become a card's own when it is full.
        (NVIDIA_REBAR, "host", (24 * GIB, 10 * MIB), 20 * MIB, -1),
        (NVIDIA_REBAR, "readback", (24 * GIB, 10 * MIB), 20 * MIB, -1),
        (RADV_APU, "host", (10 * MIB, 10 * GIB), 20 * MIB, -1),
        (RADV_APU, "local", (5 * GIB, 10 * MIB), 20 * MIB, -1),
        (ANV, "host", (20 * MIB,), 20 * MIB, 1),
        (ANV, "host", (20 * MIB - 1,), 20 * MIB, -1),
    ],
)
def test_a_type_whose_heap_has_no_room_is_passed_over(
    machine: Machine, tier: LayerTier, room: tuple[int, ...], n_bytes: int, expected: int
) -> None:
    assert chosen(machine, TIERS.index(tier), n_bytes, room) == expected


def test_only_types_that_the_buffer_allows_are_taken_and_a_refused_one_is_left_out() -> None:
    tier = TIERS.index("readback")
    assert chosen(RADV_APU, tier, MIB, type_bits=~(1 << 5) & 0x3FF) == 6
    assert chosen(NVIDIA_REBAR, tier, MIB, type_bits=0b10111) == -1  # cached memory exists, so nothing else is taken
    assert chosen(NVIDIA_REBAR, TIERS.index("host"), MIB, type_bits=0b11011) == 3
    assert chosen(NVIDIA_REBAR, len(TIERS), MIB) == -1
