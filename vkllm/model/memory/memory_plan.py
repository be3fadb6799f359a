"""What a plan says: what lies in which tier, what the caches have room for, and the speed to expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vkllm.model.memory.limits import Tier
from vkllm.model.memory.needs import whole_blocks
from vkllm.model.memory.placement import MatrixRows


@dataclass(frozen=True)
class TierPlan:
    """What lies in one tier. available_bytes: what the plan may take of it. read_bytes: bytes of the weights that a
    token reads. cache_bytes: keys, values and states of layers; states_bytes: of these, the states; spare_bytes: and
    the keys and values that further sequences may have. bytes_per_s: how fast the GPU reads them."""

    tier: Tier
    available_bytes: int
    weights_bytes: int
    read_bytes: int
    cache_bytes: int
    arena_bytes: int
    bytes_per_s: float
    states_bytes: int = 0
    spare_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        """All that the plan allocates here."""
        return self.weights_bytes + self.cache_bytes + self.arena_bytes

    @property
    def free_bytes(self) -> int:
        """What is left of available_bytes."""
        return self.available_bytes - self.used_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """Where everything lies.

    n_ctx: tokens of context of a sequence. matrices: by the weights of an `Op`, in order, the parts that it multiplies
    with one after the other; together they are all rows of all its tensors once. cache_tiers: of each layer's keys,
    values and states.
    n_state_slots: states of each layer that has one, the newest and earlier ones; 0 if none has. arena_tier: of
    activations, norms and the rope table. tiers: the fastest first. overhead_s: seconds a token besides reading.
    n_predictors: heads for further tokens that are loaded. n_sequences: that run at once. n_blocks, n_window_blocks:
    blocks of the cache that they share, in layers that see the whole context and in those with a window.

    >>> llm.plan.n_ctx == llm.n_ctx
    True
    >>> llm.plan.total_bytes == llm.plan.weights_bytes + llm.plan.cache_bytes + llm.plan.arena_bytes
    True
    """

    n_ctx: int
    matrices: Mapping[tuple[str, ...], tuple[MatrixRows, ...]]
    cache_tiers: tuple[Tier, ...]
    arena_tier: Tier
    tiers: tuple[TierPlan, ...]
    overhead_s: float
    n_state_slots: int = 0
    n_sequences: int = 1
    n_predictors: int = 0
    n_blocks: int = 0
    n_window_blocks: int = 0

    @property
    def weights_bytes(self) -> int:
        """Matrices and norms."""
        return sum(tier.weights_bytes for tier in self.tiers)

    @property
    def cache_bytes(self) -> int:
        """Keys, values and states of all sequences."""
        return sum(tier.cache_bytes for tier in self.tiers)

    @property
    def states_bytes(self) -> int:
        """Of cache_bytes, the states of layers, which do not grow with the context."""
        return sum(tier.states_bytes for tier in self.tiers)

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations, rope table, attention's intermediate results and rows that a head reads again."""
        return sum(tier.arena_bytes for tier in self.tiers)

    @property
    def total_bytes(self) -> int:
        """All that the plan allocates."""
        return self.weights_bytes + self.cache_bytes + self.arena_bytes

    def token_s(self, n_past: float) -> float:
        """Expected seconds of a decode step with n_past tokens cached: the time to read each tier, plus overhead_s."""
        seen, states = n_past / whole_blocks(self.n_ctx), 2 / max(self.n_state_slots, 1)  # read and written
        read_s = sum(
            (t.read_bytes + (t.cache_bytes - t.states_bytes - t.spare_bytes) * seen + t.states_bytes * states)
            / t.bytes_per_s
            for t in self.tiers
        )
        return read_s + self.overhead_s

    @property
    def tokens_per_s(self) -> float:
        """Expected decode speed at half the context."""
        return 1 / self.token_s(self.n_ctx / 2)
