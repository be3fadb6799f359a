"""What Python and the layer tell each other about memory: tiers, where a buffer lies, what heaps hold.

Pure data, in the order of the layer's numbers; tiers.c says which memory types belong to a tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

LayerTier = Literal["local", "host", "readback"]
"""Kind of memory: "local", the GPU's own; "host", the host's, written by the CPU and read in place by the GPU;
"readback", the host's, written by the GPU and quick to read for the CPU."""

TIERS: Final[tuple[LayerTier, ...]] = ("local", "host", "readback")
_DEVICE_LOCAL = 1
_UNKNOWN: Final = 2**64 - 1


@dataclass(frozen=True)
class Placement:
    """Where a buffer lies. flags: VkMemoryPropertyFlags of its type. address: where the CPU sees it; 0: nowhere."""

    memory_type: int
    heap: int
    flags: int
    n_bytes: int
    address: int

    @property
    def is_device_local(self) -> bool:
        """Whether it is the GPU's own memory."""
        return bool(self.flags & _DEVICE_LOCAL)


@dataclass(frozen=True)
class HeapUse:
    """A heap at one moment, in bytes. size and budget are no more than the limit that was set.

    budget_bytes: what this process can hold of it, its own use included, and driver_usage_bytes: that use as the driver
    counts it; both are None where the driver reports no budget. allocated_bytes: blocks that this process holds on this
    GPU. used_bytes: buffers of this device. room_bytes: what a new block can take.
    """

    is_device_local: bool
    size_bytes: int
    budget_bytes: int | None
    driver_usage_bytes: int | None
    allocated_bytes: int
    used_bytes: int
    room_bytes: int

    @classmethod
    def of(cls, *numbers: int) -> HeapUse:
        """From the layer's numbers, in the order of the fields."""
        is_local, size, budget, driver_usage, *rest = numbers
        if budget == _UNKNOWN:
            return cls(bool(is_local), size, None, None, *rest)
        return cls(bool(is_local), size, budget, driver_usage, *rest)
