"""What a plan may use of a device: its memories, their sizes and how fast the GPU reads them.

Heaps become tiers here, because drivers describe the same hardware in different ways. Knows drivers' habits, but no
Vulkan: `gpu/device/limits.py` fills these records from a real device, tests and `scripts/machines.py` from
descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

DeviceKind = Literal["discrete", "unified", "cpu"]

MARGIN_SHARE = 20
MAX_MARGIN_BYTES = 2**30
"""A plan leaves a 20th of a budget, at most 1 GiB, to the driver (pipelines, staging, step slots) and to others."""

NOMINAL_SHARE = 0.85
"""Share of its nominal bandwidth at which a GPU reads. With LAYER_S, it predicts the published speeds of llama.cpp's
Vulkan backend on seven of eight Radeons to within 10 % (docs/machines.md)."""

LAYER_S = 36e-6
"""Seconds that a decode step spends on a layer besides reading: starting, waiting for and draining its dispatches. On
an H100 with barriers it was 33 to 43 us (docs/performance.md)."""

CHAINED_LAYER_S = 25e-6
"""The same where dispatches wait for each other in the shader (NVIDIA's driver). With the bandwidth measured beside
them, it gives the speeds of 7B, 8B and 70B on an H100 and an H200 to within 8 % (tests/model/test_step_time.py)."""

EXPERTS_LAYERS = 1.5
"""By how much longer a layer with experts takes besides reading, in other layers: a router, a choice, small matrices.
1.3 and 2.3 on an H200 (docs/performance.md); it predicts llama.cpp's published speeds on an RX 7900 XT to 5 %."""

PCIE_BYTES_PER_S = 25e9
"""How fast a card reads system memory over PCIe 4 x16."""

# Assumptions where a device was not measured: a mid-range card; two channels of DDR4-3200; llvmpipe, which is bound by
# arithmetic, a core (SmolLM2 on two cores: 1 GB/s).
ASSUMED_DISCRETE_BYTES_PER_S = 360e9 * NOMINAL_SHARE
ASSUMED_UNIFIED_BYTES_PER_S = 51.2e9 * NOMINAL_SHARE
CPU_CORE_BYTES_PER_S = 0.5e9


class Tier(StrEnum):
    """A memory that the GPU reads in place, the fastest first.

    LOCAL: the GPU's own. SHARED: the rest of a unified memory, as fast. HOST: system memory behind a bus.
    """

    LOCAL = "local"
    SHARED = "shared"
    HOST = "host"


@dataclass(frozen=True)
class HeapLimits:
    """A memory heap as the driver reports it. budget_bytes: None where it reports none."""

    size_bytes: int
    budget_bytes: int | None
    is_device_local: bool

    @property
    def usable_bytes(self) -> int:
        """Bytes that a process can allocate in it."""
        return self.size_bytes if self.budget_bytes is None else min(self.size_bytes, self.budget_bytes)


@dataclass(frozen=True)
class Speeds:
    """How fast the GPU reads its own memory and system memory, and the seconds that a layer takes besides.

    is_measured: whether the two were measured on this device.
    """

    local_bytes_per_s: float = ASSUMED_DISCRETE_BYTES_PER_S
    host_bytes_per_s: float = PCIE_BYTES_PER_S
    layer_s: float = LAYER_S
    is_measured: bool = False


@dataclass(frozen=True)
class DeviceLimits:
    """What a device can hold.

    memory_bytes: budget of the LOCAL tier. spill_bytes: budget of the tier for what does not fit there, 0 if there is
    none. A plan keeps a margin of both. max_binding_bytes, max_allocation_bytes: the largest buffer.
    """

    memory_bytes: int
    max_binding_bytes: int
    max_allocation_bytes: int = 2**32 - 4
    kind: DeviceKind = "discrete"
    spill_bytes: int = 0
    speeds: Speeds = Speeds()

    @property
    def spill_tier(self) -> Tier:
        """What the second tier is."""
        return Tier.HOST if self.kind == "discrete" else Tier.SHARED

    @property
    def max_buffer_bytes(self) -> int:
        """The largest buffer that can be allocated and bound whole."""
        return min(self.max_binding_bytes, self.max_allocation_bytes)

    def bytes_per_s(self, tier: Tier) -> float:
        """How fast the GPU reads a tier."""
        return self.speeds.host_bytes_per_s if tier is Tier.HOST else self.speeds.local_bytes_per_s


def without_margin(budget_bytes: int) -> int:
    """Bytes of a budget that a plan may use; more for a larger budget."""
    return max(budget_bytes - min(budget_bytes // MARGIN_SHARE, MAX_MARGIN_BYTES), 0)


def assumed_speeds(kind: DeviceKind, n_cores: int) -> Speeds:
    """Speeds of a device that was not measured. n_cores: of the CPU, for drivers that run on it."""
    local = {
        "discrete": ASSUMED_DISCRETE_BYTES_PER_S,
        "unified": ASSUMED_UNIFIED_BYTES_PER_S,
        "cpu": CPU_CORE_BYTES_PER_S * n_cores,
    }[kind]
    return Speeds(local_bytes_per_s=local)


def limits_of_heaps(
    kind: DeviceKind,
    heaps: Sequence[HeapLimits],
    *,
    max_binding_bytes: int,
    max_allocation_bytes: int,
    host_bytes: int,
    speeds: Speeds,
) -> DeviceLimits:
    """Makes tiers of heaps. host_bytes: system memory that may be used.

    LOCAL is the largest device-local heap: a card without resizable BAR has another one of 256 MiB, the window through
    which the CPU sees its memory, and that stays free. The second tier is the largest other heap. RADV splits the one
    memory of an APU into both, a third and two thirds; together they are what there is. What a card spills, and
    everything on a CPU driver, lies in system memory and is bounded by host_bytes; an APU's budgets are the driver's
    own count.
    """
    local = max((heap.usable_bytes for heap in heaps if heap.is_device_local), default=0)
    other = max((heap.usable_bytes for heap in heaps if not heap.is_device_local), default=0)
    if kind == "discrete":
        other = min(other, host_bytes)
    elif kind == "cpu":
        local = min(local, host_bytes)
        other = min(other, host_bytes - local)
    return DeviceLimits(
        memory_bytes=local,
        max_binding_bytes=max_binding_bytes,
        max_allocation_bytes=max_allocation_bytes,
        kind=kind,
        spill_bytes=other,
        speeds=speeds,
    )
