"""Where a model's parts live: ModelSpec and tensor table + DeviceLimits -> MemoryPlan. Allocates nothing.

The order in which parts fill the device's own memory: activations and norms, the key/value cache, the vocabulary
projection, the layers from the last to the first, and the embedding table. A token reads every weight once, except for
the table, of which it reads one row. So no other order of weights is faster, and the table is the first to leave.
Tables of embeddings for each layer, which are gigabytes, lie in a card's system memory from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from vkllm.errors import InvalidParameter, OutOfDeviceMemory, counted
from vkllm.formats.gguf import TensorInfo
from vkllm.formats.quants import weight_format
from vkllm.model.memory.kernel_sizes import KV_BLOCK
from vkllm.model.memory.limits import EXPERTS_LAYERS, DeviceLimits, Tier, without_margin
from vkllm.model.memory.needs import (
    CACHE_TYPES,
    Needs,
    cache_bytes,
    check_cache,
    decode_bytes,
    stacks,
    tensor_bytes,
    whole_blocks,
)
from vkllm.model.memory.order import Order, order_on_card
from vkllm.model.memory.overrides import overrides
from vkllm.model.memory.placement import DoesNotFit, MatrixRows, Tiers
from vkllm.model.spec import ModelSpec
from vkllm.parameters import whole_number
from vkllm.sizes import size

__all__ = ["DeviceLimits", "MemoryPlan", "PlanOptions", "cache_bytes", "decode_bytes", "plan"]

SHORTEST_CONTEXT = 256
"""A context below this is not worth a plan: `n_ctx` 0 does not go lower, and no error suggests less."""

USUAL_CONTEXT = 4096
"""The context if none is requested. With `n_ctx` 0, weights leave the device's own memory for a context of up to this
many tokens, but not for a longer one."""

SMALLER_FORMATS = ("Q8_0", "Q6_K", "Q5_K", "Q4_0")
"""Formats that an error may suggest, the largest first."""


@dataclass(frozen=True)
class PlanOptions:
    """What a user may ask of a plan.

    type_k, type_v: of the cache, "f16" or "q8_0". n_gpu_layers: layers, counted from the last, whose weights may
    lie in a card's own memory; one more than the model has includes the vocabulary projection and the embedding;
    None or -1 is all. It has no effect on unified memory. vram_limit, ram_limit: bytes that the plan may take of a
    card's own and of system memory, or, where memory is unified, of all of it. override_tensor: where tensors may
    lie, as llama.cpp's -ot has it: "EXPRESSION=CPU,EXPRESSION=GPU". Of a tensor, the first expression decides that
    is found in its name: CPU keeps its matrix out of a card's own memory, GPU lets it lie there whatever
    n_gpu_layers says. Matrices that are stacked stay together. It has no effect on unified memory.
    """

    type_k: str = "f16"
    type_v: str = "f16"
    n_gpu_layers: int | None = None
    vram_limit: int | None = None
    ram_limit: int | None = None
    override_tensor: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidParameter for options that no device could meet."""
        overrides(self.override_tensor)
        for name, option, cache_type in (("type_k", "-ctk", self.type_k), ("type_v", "-ctv", self.type_v)):
            if not isinstance(cache_type, str) or cache_type not in CACHE_TYPES:
                raise InvalidParameter(f"{name} ({option}) must be {' or '.join(CACHE_TYPES)}, not {cache_type!r}")
        for name, option in (("n_gpu_layers", "-ngl"), ("vram_limit", "--vram-limit"), ("ram_limit", "--ram-limit")):
            if (value := getattr(self, name)) is not None:
                is_all = name == "n_gpu_layers" and isinstance(value, int | float) and value == -1
                also = ", or -1 for all" if name == "n_gpu_layers" else ""
                checked = None if is_all else whole_number(f"{name} ({option})", value, 0, also=also)
                object.__setattr__(self, name, checked)


@dataclass(frozen=True)
class TierPlan:
    """What lies in one tier. available_bytes: what the plan may take of it. read_bytes: bytes of the weights that a
    token reads. cache_bytes: keys, values and states of layers; states_bytes: of these, the states. bytes_per_s: how
    fast the GPU reads them."""

    tier: Tier
    available_bytes: int
    weights_bytes: int
    read_bytes: int
    cache_bytes: int
    arena_bytes: int
    bytes_per_s: float
    states_bytes: int = 0

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

    n_ctx: tokens of context. matrices: by the weights of an `Op`, in order, the parts that it multiplies with one after
    the other; together they are all rows of all its tensors once. cache_tiers: of each layer's keys, values and states.
    n_state_slots: states of each layer that has one, the newest and earlier ones; 0 if none has. arena_tier: of
    activations, norms and the rope table. tiers: the fastest first. overhead_s: seconds a token besides reading.
    n_sequences: that a step may be of.

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

    @property
    def weights_bytes(self) -> int:
        """Matrices and norms."""
        return sum(tier.weights_bytes for tier in self.tiers)

    @property
    def cache_bytes(self) -> int:
        """Keys and values of n_ctx tokens, and states."""
        return sum(tier.cache_bytes for tier in self.tiers)

    @property
    def states_bytes(self) -> int:
        """Of cache_bytes, the states of layers, which do not grow with the context."""
        return sum(tier.states_bytes for tier in self.tiers)

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations, rope table and attention's intermediate results."""
        return sum(tier.arena_bytes for tier in self.tiers)

    @property
    def total_bytes(self) -> int:
        """All that the plan allocates."""
        return self.weights_bytes + self.cache_bytes + self.arena_bytes

    def token_s(self, n_past: float) -> float:
        """Expected seconds of a decode step with n_past tokens cached: the time to read each tier, plus overhead_s."""
        seen, states = n_past / whole_blocks(self.n_ctx), 2 / max(self.n_state_slots, 1)  # read and written
        read_s = sum(
            (t.read_bytes + (t.cache_bytes - t.states_bytes) * seen + t.states_bytes * states) / t.bytes_per_s
            for t in self.tiers
        )
        return read_s + self.overhead_s

    @property
    def tokens_per_s(self) -> float:
        """Expected decode speed at half the context."""
        return 1 / self.token_s(self.n_ctx / 2)


def plan(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    limits: DeviceLimits,
    n_ctx: int,
    max_rows: int,
    head_rows: int = 1,
    options: PlanOptions | None = None,
) -> MemoryPlan:
    """Plans a model. max_rows: rows of a step. head_rows: rows whose logits the device holds at once.

    n_ctx 0 takes the longest context, up to the model's own, that moves no more out of the fastest memory than
    USUAL_CONTEXT does. Raises OutOfDeviceMemory, with what is missing and what would fit; InvalidParameter for options
    that no device or model could meet, or this model cannot.
    """
    options = options or PlanOptions()
    check_cache(spec, options.type_k, options.type_v)
    needs = Needs(spec, tensors, max_rows, head_rows, options.type_k, options.type_v)
    planner = _Planner(needs, limits, options)
    made = planner.automatic() if n_ctx == 0 else planner.attempt(n_ctx)
    if made is None:
        raise planner.refusal(n_ctx or min(SHORTEST_CONTEXT, spec.n_ctx_train))
    return made


@dataclass(frozen=True)
class _Planner:
    """One model on one device; what changes between attempts is the context."""

    needs: Needs
    limits: DeviceLimits
    options: PlanOptions

    def capacities(self) -> list[tuple[Tier, int]]:
        """Tiers and what a plan may take of each."""
        limits, options = self.limits, self.options
        local, spill = without_margin(limits.memory_bytes), without_margin(limits.spill_bytes)
        if limits.kind == "discrete":
            local = min(local, _or_all(options.vram_limit, local))
            spill = min(spill, _or_all(options.ram_limit, spill))
        else:
            both = min(_or_all(limit, local + spill) for limit in (options.vram_limit, options.ram_limit))
            local = min(local, both)
            spill = min(spill, both - local)
        return [(Tier.LOCAL, local), (limits.spill_tier, spill)]

    def attempt(self, n_ctx: int, *, is_fast_only: bool = False) -> MemoryPlan | None:
        """The plan for a context, or None. is_fast_only: only tiers that are as fast as the first."""
        capacities = self.capacities()
        if is_fast_only:
            fastest = self.limits.bytes_per_s(Tier.LOCAL)
            capacities = [(tier, n) for tier, n in capacities if self.limits.bytes_per_s(tier) >= fastest]
        if max(self.needs.largest_buffers(n_ctx).values()) > self.limits.max_buffer_bytes:
            return None
        try:
            return self._place(n_ctx, capacities)
        except DoesNotFit:
            return None

    def automatic(self) -> MemoryPlan | None:
        """The plan for the longest context that costs no speed, or for the longest up to USUAL_CONTEXT."""
        usual = min(USUAL_CONTEXT, self.needs.spec.n_ctx_train)
        longest = self._longest(self.needs.spec.n_ctx_train, lambda n: self.attempt(n, is_fast_only=True) is not None)
        if longest < usual:
            longest = self._longest(usual, lambda n: self.attempt(n) is not None)
        return self.attempt(longest) if longest else None

    def refusal(self, n_ctx: int) -> OutOfDeviceMemory:
        """Why there is no plan for n_ctx tokens, and what would fit."""
        by_part = self.needs.by_part(n_ctx)
        needed = sum(by_part.values())
        available = sum(n_bytes for _, n_bytes in self.capacities())
        buffers = self.needs.largest_buffers(n_ctx)
        name = max(buffers, key=lambda key: buffers[key])
        if buffers[name] > self.limits.max_buffer_bytes:
            reason = (
                f"{name} of {n_ctx} tokens takes {size(buffers[name])}, and this device can bind "
                f"{size(self.limits.max_buffer_bytes)} at once"
            )
        else:
            parts = ", ".join(f"{part} {size(n_bytes)}" for part, n_bytes in by_part.items())
            tiers = ", ".join(f"{tier} {size(n_bytes)}" for tier, n_bytes in self.capacities() if n_bytes)
            missing = f"{size(needed - available)} are missing" if needed > available else "but not where parts may lie"
            reason = (
                f"the model needs {size(needed)} with a context of {n_ctx} tokens ({parts}), and this device "
                f"can give it {size(available)} ({tiers or 'none'}): {missing}"
            )
        fitting = self._what_would_fit(n_ctx)
        advice = f"{' or '.join(fitting)} would fit" if fitting else "use a smaller model or quantization"
        return OutOfDeviceMemory(f"{reason}; {advice}")

    def _what_would_fit(self, n_ctx: int) -> list[str]:
        fitting = []
        if longest := self._longest(n_ctx, lambda n: self.attempt(n) is not None):
            fitting.append(f"a context of {longest} tokens")
        unlimited = replace(self.options, vram_limit=None, ram_limit=None)
        if unlimited != self.options and replace(self, options=unlimited).attempt(n_ctx):
            fitting.append("the model without --vram-limit and --ram-limit")
        all_layers = replace(self.options, n_gpu_layers=None)
        if all_layers != self.options and replace(self, options=all_layers).attempt(n_ctx):
            fitting.append("the model without -ngl")
        if not longest:
            for name in SMALLER_FORMATS:
                tensors = {key: _in_format(tensor, name) for key, tensor in self.needs.tensors.items()}
                smaller = replace(self, needs=replace(self.needs, tensors=tensors))
                if tensors != self.needs.tensors and smaller.attempt(min(n_ctx, USUAL_CONTEXT)):
                    fitting.append(f"the same model in {name} (context {min(n_ctx, USUAL_CONTEXT)})")
                    break
        return fitting

    def _longest(self, most: int, fits: Callable[[int], bool]) -> int:
        """The longest context up to `most` that fits, in whole blocks or all of it; 0 if it is not worth a plan."""
        least = min(SHORTEST_CONTEXT, most)
        if not fits(least):
            return 0
        if fits(most):
            return most
        low, high = least // KV_BLOCK, most // KV_BLOCK + 1  # in blocks: low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            if middle * KV_BLOCK < most and fits(middle * KV_BLOCK):
                low = middle
            else:
                high = middle
        return max(low * KV_BLOCK, least)

    def _place(self, n_ctx: int, capacities: list[tuple[Tier, int]]) -> MemoryPlan:
        needs, limits, n_layers = self.needs, self.limits, self.needs.spec.n_layers
        n_mixtures = sum(layer.experts is not None for layer in needs.spec.layers)
        order = self._order()
        matrices = self._tables(order)
        in_tables = sum(part.n_bytes for rows in matrices.values() for part in rows)
        rooms = [(tier, n - in_tables if tier is limits.spill_tier else n) for tier, n in capacities]
        tiers = Tiers(rooms, limits.max_buffer_bytes)
        arena_bytes, vectors_bytes = needs.arena_bytes(n_ctx), needs.vectors_bytes()
        states_bytes = [needs.layer_states_bytes(layer) for layer in needs.spec.layers]
        cache_bytes = [
            needs.layer_cache_bytes(n_ctx, layer) + n for layer, n in zip(needs.spec.layers, states_bytes, strict=True)
        ]
        arena_tier = tiers.place(arena_bytes + vectors_bytes)
        cache_tiers = [tiers.place(n_bytes) for n_bytes in reversed(cache_bytes)][::-1]  # the last layer's first
        for weights in (*order.fast, *(table for table in order.tables if table not in matrices)):
            matrices[weights] = self._rows(tiers, weights)
        if order.slow:
            tiers.leave(Tier.LOCAL)
        for weights in order.slow:
            matrices[weights] = self._rows(tiers, weights)

        held = {tier: vectors_bytes if tier is arena_tier else 0 for tier, _ in self.capacities()}
        read = dict(held)
        for weights, rows in matrices.items():
            for part in rows:
                held[part.tier] += part.n_bytes
                read[part.tier] += round(part.n_bytes * needs.read_share(weights))
        return MemoryPlan(
            n_ctx=n_ctx,
            matrices=matrices,
            cache_tiers=tuple(cache_tiers),
            arena_tier=arena_tier,
            tiers=tuple(
                TierPlan(
                    tier=tier,
                    available_bytes=available,
                    weights_bytes=held[tier],
                    read_bytes=read[tier],
                    cache_bytes=sum(n for n, cached in zip(cache_bytes, cache_tiers, strict=True) if cached is tier),
                    arena_bytes=arena_bytes if tier is arena_tier else 0,
                    bytes_per_s=limits.bytes_per_s(tier),
                    states_bytes=sum(n for n, kept in zip(states_bytes, cache_tiers, strict=True) if kept is tier),
                )
                for tier, available in capacities
                if available
            ),
            overhead_s=(n_layers + EXPERTS_LAYERS * n_mixtures) * limits.speeds.layer_s,
            n_state_slots=needs.n_state_slots,
        )

    def _rows(self, tiers: Tiers, weights: tuple[str, ...]) -> tuple[MatrixRows, ...]:
        return tuple(rows for stack in stacks(weights, self.needs.tensors) for rows in tiers.place_rows(stack))

    def _order(self) -> Order:
        if self.limits.kind != "discrete":
            return Order(tuple(self.needs.matrices()))
        return order_on_card(self.needs, self.options.n_gpu_layers, self.options.override_tensor)

    def _tables(self, order: Order) -> dict[tuple[str, ...], tuple[MatrixRows, ...]]:
        """Tables that lie in system memory, if it has room for them."""
        tiers = Tiers(self.capacities()[1:], self.limits.max_buffer_bytes)
        try:
            return {weights: self._rows(tiers, weights) for weights in order.tables}
        except DoesNotFit:
            return {}


def chosen_context(n_ctx: int | None, n_ctx_train: int) -> int:
    """The context to plan for, where a user asks for n_ctx: None is USUAL_CONTEXT or what the model was trained for.

    0 stays 0. Raises InvalidParameter.
    """
    if n_ctx is None:
        return min(n_ctx_train, USUAL_CONTEXT)
    try:
        n_ctx = whole_number("n_ctx", n_ctx, -(2**31), 2**31)
    except InvalidParameter:
        raise InvalidParameter(
            f"n_ctx must be a whole number of tokens, here from 2 to {n_ctx_train}, or 0 for the longest that costs no "
            f"speed, not {n_ctx!r}"
        ) from None
    if n_ctx != 0 and not 1 < n_ctx <= n_ctx_train:
        raise InvalidParameter(
            f"a context of {counted(n_ctx, 'token')} is not possible; the model was trained for 2 to "
            f"{n_ctx_train}, and 0 takes the longest that fits"
        )
    return n_ctx


def _in_format(tensor: TensorInfo, name: str) -> TensorInfo:
    """The tensor in that format, if that is possible and smaller."""
    smaller = replace(tensor, format=name)
    can_be = len(tensor.shape) == 2 and tensor.shape[1] % weight_format(name).block == 0
    return smaller if can_be and tensor_bytes(smaller) < tensor_bytes(tensor) else tensor


def _or_all(limit: int | None, n_bytes: int) -> int:
    return n_bytes if limit is None else limit
