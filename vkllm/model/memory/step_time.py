"""How long a step of one token takes on several devices: what each rank takes, and what passes between them.

A rank's own time comes from its plan (`MemoryPlan.token_s`): reading its part of weights and cache, and a fixed time
a layer. Split by tensors, all ranks run at once and join partial sums after attention and after the feed-forward layer.
Split by layers, they run one after the other and hand over one hidden state. Pure arithmetic: knows no device and no
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vkllm.model.memory.limits import PCIE_BYTES_PER_S

EXCHANGE_S = 2.1e-6
"""Seconds until a flag that one card wrote to system memory was seen by the other: two H200s, within one dispatch."""

HOST_MEMORY_BYTES_PER_S = 50e9
"""What all cards together move through system memory: two channels of DDR5. Servers have more."""

HANDOVER_S = 0.5e-3
"""Seconds from the end of one device's submit to the start of the next one's: a submit and a wait on an H100 in a
virtual machine."""

DISPATCHES_PER_LAYER = 5
"""Dispatches that a layer's fixed time is for (docs/design.md); an exchange is one more."""


ROW_WRITES = 2.4
"""Bytes that a rank writes for each byte of a row that it hands over: two copies, and flags, of which each workgroup
writes 68 of 16 bytes (some 48 on the bus) for 8 KiB (shaders/lib/exchange.glsl). Rows of prompts are written once."""


@dataclass(frozen=True)
class ExchangeSpeed:
    """How fast devices pass numbers to each other through system memory.

    latency_s: seconds until the others see what one wrote. bytes_per_s: between one device and system memory.
    host_bytes_per_s: of all devices together. is_measured: whether latency_s and bytes_per_s were measured here.
    """

    latency_s: float = EXCHANGE_S
    bytes_per_s: float = PCIE_BYTES_PER_S
    host_bytes_per_s: float = HOST_MEMORY_BYTES_PER_S
    is_measured: bool = False

    def sum_s(self, row_bytes: int, n_ranks: int) -> float:
        """Seconds until all of n_ranks ranks have the sum of a row of each of them."""
        return self.latency_s + self._moved_s((ROW_WRITES + n_ranks - 1) * row_bytes, n_ranks)

    def transfer_s(self, n_bytes: int, n_ranks: int) -> float:
        """What n_bytes add to a long exchange, as of prompts.

        A rank writes its own and then reads those of the others; reads wait for the writes before them. In two phases,
        where that is less, it reads the others' parts of its piece, writes the sums and reads those of other pieces.
        """
        return self._moved_s(min(n_ranks, 3 - 1 / n_ranks) * n_bytes, n_ranks)

    def _moved_s(self, n_bytes: float, n_ranks: int) -> float:
        """Seconds in which each rank moves n_bytes."""
        return max(n_bytes / self.bytes_per_s, n_ranks * n_bytes / self.host_bytes_per_s)


def between_ranks_s(row_bytes: Sequence[int], n_ranks: int, layer_s: float, speed: ExchangeSpeed) -> float:
    """Seconds that a token's exchanges take, of a row of so many bytes each. layer_s: the slowest rank's fixed time a
    layer, which says what one more dispatch takes; where the latency was measured, it is part of that."""
    dispatch_s = 0.0 if speed.is_measured else layer_s / DISPATCHES_PER_LAYER
    return sum(speed.sum_s(n_bytes, n_ranks) + dispatch_s for n_bytes in row_bytes)


def handovers_s(n_bytes: int, n_ranks: int, speed: ExchangeSpeed) -> float:
    """Seconds that n_bytes take from the first to the last of n_ranks ranks that run one after the other."""
    return (n_ranks - 1) * (HANDOVER_S + 2 * n_bytes / speed.bytes_per_s)


def tensor_step_s(ranks_s: Sequence[float], exchanges_s: float) -> float:
    """A step split by tensors waits for its slowest rank. ranks_s: seconds of each without exchanges."""
    return max(ranks_s) + exchanges_s


def layer_step_s(ranks_s: Sequence[float], handovers_s: float) -> float:
    """A step split by layers passes through all ranks."""
    return sum(ranks_s) + handovers_s
