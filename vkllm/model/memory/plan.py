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
from vkllm.model.layers.prediction import can_predict, with_predictors
from vkllm.model.memory.exchange_memory import NO_EXCHANGE, ExchangeShare
from vkllm.model.memory.kernel_sizes import KV_BLOCK
from vkllm.model.memory.limits import EXPERTS_LAYERS, DeviceLimits, Tier, without_margin
from vkllm.model.memory.memory_plan import MemoryPlan, TierPlan
from vkllm.model.memory.needs import Needs, cache_bytes, check_cache, decode_bytes, stacks, tensor_bytes
from vkllm.model.memory.options import PlanOptions
from vkllm.model.memory.order import Order, order_on_card
from vkllm.model.memory.placement import DoesNotFit, MatrixRows, Tiers
from vkllm.model.memory.sequences import MOST_SEQUENCES, SPARE_SHARE, Room, room_for, with_blocks
from vkllm.model.spec import NO_LAYER, ModelSpec
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


def plan(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    limits: DeviceLimits,
    n_ctx: int,
    max_rows: int,
    head_rows: int = 1,
    options: PlanOptions | None = None,
    room: Room | None = None,
    exchange: ExchangeShare = NO_EXCHANGE,
) -> MemoryPlan:
    """Plans a model. max_rows: rows of a step. head_rows: rows whose logits the device holds at once. room: what caches
    and states have to have room for, instead of n_ctx, where several devices plan for the same sequences. exchange:
    what the device needs besides, as one of several that compute together.

    n_ctx 0 takes the longest context, up to the model's own, that moves no more out of the fastest memory than
    USUAL_CONTEXT does. Everything is planned for one sequence first; others run beside it as far as that costs it
    nothing (`for_many`). Raises OutOfDeviceMemory, with what is missing and what would fit; InvalidParameter for
    options that no device or model could meet, or this model cannot.
    """
    options = options or PlanOptions()
    check_cache(spec, options.type_k, options.type_v)
    sizes = max_rows, head_rows, options.type_k, options.type_v
    planners = [
        _Planner(
            Needs(with_predictors(spec, n), tensors, *sizes, exchange),
            *(limits, options),
        )
        for n in _n_predictors(spec, options)
    ]
    if room is not None:
        return planners[-1].for_room(room)
    plans = [planner.automatic() if n_ctx == 0 else planner.attempt(n_ctx) for planner in planners]
    if (without := plans[-1]) is None:
        raise planners[-1].refusal(n_ctx or min(SHORTEST_CONTEXT, spec.n_ctx_train))
    if (first := plans[0]) is None or _costs_room(first, without):
        return planners[-1].for_many(without)
    return planners[0].for_many(first)


def _n_predictors(spec: ModelSpec, options: PlanOptions) -> tuple[int, ...]:
    """How many heads for further tokens may be loaded; the first number that costs nothing else is best."""
    if options.spec == "mtp" and not can_predict(spec):
        heads = "heads for further tokens that do not run here" if spec.predictors else "no heads for further tokens"
        raise InvalidParameter(f"the model has {heads}, so --spec mtp is not possible; choose auto, ngram or off")
    if options.spec == "mtp":
        return (1,)
    return (1, 0) if options.spec == "auto" and can_predict(spec) else (0,)


def _costs_room(made: MemoryPlan, without: MemoryPlan) -> bool:
    """Whether a plan with heads has a shorter context than one without, or more in slower memory."""

    def slow_bytes(plan: MemoryPlan) -> int:
        return sum(tier.used_bytes for tier in plan.tiers if tier.bytes_per_s < plan.tiers[0].bytes_per_s)

    return made.n_ctx < without.n_ctx or slow_bytes(made) > slow_bytes(without)


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
        """The plan for one sequence, or None. is_fast_only: only tiers that are as fast as the first."""
        return self._with_room(self.needs.room_for_one(n_ctx), is_fast_only=is_fast_only)

    def for_room(self, room: Room) -> MemoryPlan:
        """The plan with that room. Raises OutOfDeviceMemory."""
        made = self._with_room(room, self.needs.room_for_one(room.n_ctx))
        if made is None:
            raise self.refusal(room.n_ctx)
        return made

    def for_many(self, alone: MemoryPlan) -> MemoryPlan:
        """The plan for as many sequences as are asked for, at most, which takes no weights out of fast memory.

        alone: the plan for one. Without windows and states, all of n_parallel run (MOST_SEQUENCES if nobody asks);
        otherwise as many as there is room for what each needs beside the blocks (`room_for`), if nobody asks in
        1/SPARE_SHARE of what the weights take. They share the blocks of one context; where n_parallel is given, they
        have up to one context each, as far as there is room.
        """
        wanted, spec = self.options.n_parallel, self.needs.spec
        one = self.needs.room_for_one(alone.n_ctx)

        def made(room: Room) -> MemoryPlan | None:
            if not wanted and self._more_bytes(room, one) > self.needs.matrices_bytes // SPARE_SHARE:
                return None
            plan = self._with_room(room, one)
            is_as_fast = plan is not None and plan.tokens_per_s >= alone.tokens_per_s * (1 - 1e-9)
            return plan if is_as_fast else None

        rooms = [room_for(n, one, spec) for n in range(1, (wanted or MOST_SEQUENCES) + 1)]
        if not (wanted or self.needs.spec.predictors or self._more_bytes(rooms[-1], one)):
            return replace(alone, n_sequences=len(rooms))
        room = rooms[_last(len(rooms), lambda i: made(rooms[i]) is not None)]
        if wanted:
            most = range(one.n_blocks, room.n_sequences * one.n_blocks + 1)
            n_blocks = most[_last(len(most), lambda i: made(with_blocks(most[i], room, one, spec)) is not None)]
            room = with_blocks(n_blocks, room, one, spec)
        return made(room) or alone

    def _more_bytes(self, room: Room, one: Room) -> int:
        """Bytes that caches and states take beyond those of one sequence."""
        needs = self.needs
        return sum(
            needs.layer_cache_bytes(room, layer)
            + needs.layer_states_bytes(room, layer)
            - needs.layer_cache_bytes(one, layer)
            - needs.layer_states_bytes(one, layer)
            for layer in needs.spec.all_layers
        )

    def _with_room(self, room: Room, one: Room | None = None, *, is_fast_only: bool = False) -> MemoryPlan | None:
        capacities = self.capacities()
        if is_fast_only:
            fastest = self.limits.bytes_per_s(Tier.LOCAL)
            capacities = [(tier, n) for tier, n in capacities if self.limits.bytes_per_s(tier) >= fastest]
        if max(self.needs.largest_buffers(room).values()) > self.limits.max_buffer_bytes:
            return None
        try:
            return self._place(room, one or room, capacities)
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
        room = self.needs.room_for_one(n_ctx)
        by_part = self.needs.by_part(room)
        needed = sum(by_part.values())
        available = sum(n_bytes for _, n_bytes in self.capacities())
        buffers = self.needs.largest_buffers(room)
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

    def _place(self, room: Room, one: Room, capacities: list[tuple[Tier, int]]) -> MemoryPlan:
        """The plan with that room. one: the room for one sequence."""
        needs, limits = self.needs, self.limits
        n_layers = sum(layer != NO_LAYER for layer in needs.spec.layers)
        n_mixtures = sum(layer.experts is not None for layer in needs.spec.layers)
        order = self._order()
        matrices = self._tables(order)
        in_tables = sum(part.n_bytes for rows in matrices.values() for part in rows)
        moved = self._moved()
        rooms = [(tier, n - moved[tier] - (in_tables if tier is limits.spill_tier else 0)) for tier, n in capacities]
        if min(n for _, n in rooms) < 0:
            raise DoesNotFit
        tiers = Tiers(rooms, limits.max_buffer_bytes)
        arena_bytes, vectors_bytes = needs.arena_bytes(room), needs.vectors_bytes()
        states_bytes = [needs.layer_states_bytes(room, layer) for layer in needs.spec.all_layers]
        kept_bytes = [needs.layer_cache_bytes(room, layer) for layer in needs.spec.all_layers]
        spare_bytes = [
            n - needs.layer_cache_bytes(one, layer) for layer, n in zip(needs.spec.all_layers, kept_bytes, strict=True)
        ]
        cache_bytes = [kept + states for kept, states in zip(kept_bytes, states_bytes, strict=True)]
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
            n_ctx=room.n_ctx,
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
                    arena_bytes=(arena_bytes if tier is arena_tier else 0) + moved[tier],
                    bytes_per_s=limits.bytes_per_s(tier),
                    states_bytes=sum(n for n, kept in zip(states_bytes, cache_tiers, strict=True) if kept is tier),
                    spare_bytes=sum(n for n, kept in zip(spare_bytes, cache_tiers, strict=True) if kept is tier),
                )
                for tier, available in capacities
                if available
            ),
            overhead_s=(n_layers + EXPERTS_LAYERS * n_mixtures) * limits.speeds.layer_s,
            n_state_slots=room.n_state_slots,
            n_predictors=len(needs.spec.predictors),
            n_sequences=room.n_sequences,
            n_blocks=room.n_blocks,
            n_window_blocks=room.n_window_blocks,
        )

    def _rows(self, tiers: Tiers, weights: tuple[str, ...]) -> tuple[MatrixRows, ...]:
        return tuple(rows for stack in stacks(weights, self.needs.tensors) for rows in tiers.place_rows(stack))

    def _moved(self) -> dict[Tier, int]:
        """Where what passes between devices lies: in system memory. Where a card's plan has no room for it there, it
        lies in what no plan uses."""
        (local, _), (spill, room) = self.capacities()
        behind = min(self.needs.moved_bytes, room)
        rest = 0 if self.limits.kind == "discrete" else self.needs.moved_bytes - behind
        return {local: rest, spill: behind}

    def _order(self) -> Order:
        if self.limits.kind != "discrete":
            return Order(tuple(self.needs.matrices()))
        return order_on_card(self.needs, self.options.n_gpu_layers, self.options.override_tensor)

    def _tables(self, order: Order) -> dict[tuple[str, ...], tuple[MatrixRows, ...]]:
        """Tables that lie in system memory, if it has room for them."""
        moved, (tier, n) = self._moved(), self.capacities()[1]
        tiers = Tiers([(tier, n - moved[tier])], self.limits.max_buffer_bytes)
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


def _last(n: int, is_true: Callable[[int], bool]) -> int:
    """The last of n numbers for which that is so, as it is for all before it; 0 is not asked."""
    low, high = 0, n
    while high - low > 1:
        middle = n - 1 if high == n else (low + high) // 2  # often it is so for all
        low, high = (middle, high) if is_true(middle) else (low, middle)
    return low


def _in_format(tensor: TensorInfo, name: str) -> TensorInfo:
    """The tensor in that format, if that is possible and smaller."""
    smaller = replace(tensor, format=name)
    can_be = len(tensor.shape) == 2 and tensor.shape[1] % weight_format(name).block == 0
    return smaller if can_be and tensor_bytes(smaller) < tensor_bytes(tensor) else tensor


def _or_all(limit: int | None, n_bytes: int) -> int:
    return n_bytes if limit is None else limit
