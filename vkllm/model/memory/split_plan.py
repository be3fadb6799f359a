"""A model on several devices: what each would hold, how fast each way of splitting it would be, and which to take.

Each rank's part of the model is planned like a model of its own (`plan.py`), with the same room for sequences on all
ranks. Allocates nothing and touches no device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vkllm.errors import InvalidParameter, OutOfDeviceMemory, UnsupportedDevice, VkllmError, counted
from vkllm.formats.gguf import TensorInfo
from vkllm.model.graph import decoder
from vkllm.model.memory.division import asked_proportions, layer_ranges, proportions
from vkllm.model.memory.exchange_memory import (
    MOST_BYTES,
    NO_EXCHANGE,
    Exchanged,
    ExchangeLayout,
    ExchangeShare,
    n_lists,
    sum_fours,
)
from vkllm.model.memory.kernel_sizes import MAX_ROWS
from vkllm.model.memory.limits import DeviceLimits
from vkllm.model.memory.memory_plan import MemoryPlan
from vkllm.model.memory.needs import Needs, tensor_bytes
from vkllm.model.memory.options import PlanOptions
from vkllm.model.memory.plan import USUAL_CONTEXT, plan
from vkllm.model.memory.sequences import Room
from vkllm.model.memory.step_time import ExchangeSpeed, between_ranks_s, handovers_s, layer_step_s, tensor_step_s
from vkllm.model.ops import AllReduce
from vkllm.model.shards.rank_model import RankModel, rank_models
from vkllm.model.spec import ModelSpec
from vkllm.model.stages import stages
from vkllm.sizes import size

Part = tuple[ModelSpec, Mapping[str, TensorInfo]]
"""What a rank has: a model of its own."""

EMBEDDING = "token_embd.weight"

SplitMode = Literal["none", "layer", "tensor"]
MODES: tuple[SplitMode, ...] = ("none", "layer", "tensor")
"""All on one device; some layers on each; a part of every matrix on each. The simplest first."""

WORTH_IT = 1.1
"""By which factor a split has to be expected faster than a simpler one to be chosen by default."""

MOST_UNEQUAL = 2.0
"""Devices whose speeds differ by more than this factor are split by layers by default."""


@dataclass(frozen=True)
class Member:
    """A device that may take part. card: which GPU it is; members with the same card share its memory and speed.

    can_exchange: whether its driver lets it read system memory that another device writes.
    """

    name: str
    limits: DeviceLimits
    card: str
    can_exchange: bool = True


@dataclass(frozen=True)
class SplitPlan:
    """One way of splitting. By rank: members (places in the list of devices), parts (of the whole, together 1), layers
    and plans. between_s: seconds a token that pass between the devices, in n_exchanges. most_prompt_rows_per_s: tokens
    of prompts a second that the exchanges let through; None where nothing is exchanged."""

    mode: SplitMode
    members: tuple[int, ...]
    parts: tuple[float, ...]
    layers: tuple[range, ...]
    plans: tuple[MemoryPlan, ...]
    between_s: float = 0.0
    n_exchanges: int = 0
    most_prompt_rows_per_s: float | None = None

    @property
    def room(self) -> Room:
        """What the caches and states of all ranks have room for."""
        return _common_room(self.plans)

    def token_s(self, n_past: float) -> float:
        """Expected seconds of a decode step with n_past tokens cached."""
        ranks_s = [plan.token_s(n_past) for plan in self.plans]
        step_s = tensor_step_s if self.mode == "tensor" else layer_step_s
        return step_s(ranks_s, self.between_s)

    @property
    def tokens_per_s(self) -> float:
        """Expected decode speed of one sequence at half the context."""
        return 1 / self.token_s(self.room.n_ctx / 2)


@dataclass(frozen=True)
class SplitPlans:
    """All ways of splitting a model between members: the plan of each or why there is none. speed: of exchanges between
    them. chosen: the default."""

    members: tuple[Member, ...]
    plans: Mapping[SplitMode, SplitPlan]
    refusals: Mapping[SplitMode, VkllmError]
    speed: ExchangeSpeed
    chosen: SplitMode
    reason: str

    def of(self, mode: SplitMode | None) -> SplitPlan:
        """The plan of a mode, or the chosen one. Raises why there is none, and says which other mode would do."""
        mode = mode or self.chosen
        if mode in self.plans:
            return self.plans[mode]
        error = self.refusals[mode]
        others = " or ".join(f"-sm {other}" for other in MODES if other in self.plans)
        raise type(error)(f"{error}; {others} would work" if others else str(error))


def plan_splits(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    members: Sequence[Member],
    n_ctx: int,
    max_rows: int,
    head_rows: int = 1,
    options: PlanOptions | None = None,
    *,
    tensor_split: Sequence[float] = (),
    main_device: int | None = None,
    speed: ExchangeSpeed | None = None,
) -> SplitPlans:
    """Plans a model on one of the members, and on all of them by layers and by tensors.

    n_ctx to options: as for `plan`. tensor_split: the part of each member, in any unit; a member of 0 takes no part.
    main_device: the place of the member that holds all with "none"; by default the one that would be fastest. Raises
    InvalidParameter for numbers that do not suit the members. A split that is impossible is among the refusals.
    """
    options, speed = options or PlanOptions(), speed or ExchangeSpeed()
    if main_device is not None and not 0 <= main_device < len(members):
        raise InvalidParameter(
            f"main_device (-mg) is the place of one of {counted(len(members), 'device')}, from 0, not {main_device}"
        )
    asked = asked_proportions(tensor_split, len(members)) if tensor_split else None
    splitter = _Splitter(spec, tensors, tuple(members), (n_ctx, max_rows, head_rows, options), asked, main_device)
    plans: dict[SplitMode, SplitPlan] = {}
    refusals: dict[SplitMode, VkllmError] = {}
    for mode in MODES:
        try:
            plans[mode] = splitter.plan(mode, speed)
        except (OutOfDeviceMemory, UnsupportedDevice, InvalidParameter) as error:
            refusals[mode] = error
    if not plans:
        raise OutOfDeviceMemory(
            f"the model fits neither one of these devices nor all of them together: {refusals['layer']}"
        )
    return SplitPlans(tuple(members), plans, refusals, speed, *_choice(members, plans))


@dataclass(frozen=True)
class _Splitter:
    """One model, and the devices that may take part. how: n_ctx, max_rows, head_rows and options of `plan`."""

    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]
    members: tuple[Member, ...]
    how: tuple[int, int, int, PlanOptions]
    asked: tuple[float, ...] | None
    main_device: int | None

    def plan(self, mode: SplitMode, speed: ExchangeSpeed) -> SplitPlan:
        """The plan of a mode. Raises OutOfDeviceMemory, UnsupportedDevice, InvalidParameter."""
        match mode:
            case "none":
                return self._on_one()
            case "layer":
                return self._by_layers(speed)
            case "tensor":
                return self._by_tensors(speed)

    def _on_one(self) -> SplitPlan:
        """All on the main device, or on the one that would be fastest."""
        kinds = {member.limits: place for place, member in reversed([*enumerate(self.members)])}  # equal ones once
        made: list[SplitPlan] = []
        errors: list[OutOfDeviceMemory] = []
        for place in sorted(kinds.values()) if self.main_device is None else [self.main_device]:
            try:
                made_plan = plan(self.spec, self.tensors, self.members[place].limits, *self.how)
            except OutOfDeviceMemory as error:
                errors.append(error)
                continue
            made.append(SplitPlan("none", (place,), (1.0,), (range(self.spec.n_layers),), (made_plan,)))
        if not made:
            raise errors[0]
        return max(made, key=lambda found: found.tokens_per_s)

    def _by_layers(self, speed: ExchangeSpeed) -> SplitPlan:
        n_bytes = [0] * self.spec.n_layers
        for name, info in self.tensors.items():
            is_in_layer = name.startswith("blk.") and int(name.split(".")[1]) < self.spec.n_layers
            number = int(name.split(".")[1]) if is_in_layer else -1 if name == self.spec.output_weight else 0
            n_bytes[number] += tensor_bytes(info)
        members, parts, limits = self._ranks(max(n_bytes), is_at_once=False)
        layers = layer_ranges(self.spec, parts, n_bytes)
        spec = replace(self.spec, predictors=())  # which draft on one device only
        plans = self._plans(members, limits, [(part, self.tensors) for part in stages(spec, layers)])
        between_s = handovers_s(4 * self.spec.d_model, len(members), speed)
        return SplitPlan("layer", members, parts, layers, plans, between_s)

    def _by_tensors(self, speed: ExchangeSpeed) -> SplitPlan:
        table_bytes = tensor_bytes(self.tensors[EMBEDDING]) if EMBEDDING in self.tensors else 0
        members, parts, limits = self._ranks(table_bytes, is_at_once=True)
        if unable := [self.members[place].name for place in members if not self.members[place].can_exchange]:
            raise UnsupportedDevice(
                f"-sm tensor needs devices that read each other's numbers through system memory, and the driver of "
                f"{unable[0]} has no VK_EXT_external_memory_host"
            )
        ranks = rank_models(self.spec, self.tensors, parts)
        share = exchange_share(ranks, [self.members[place] for place in members])
        plans = self._plans(members, limits, [(rank.spec, rank.tensors) for rank in ranks], share)
        columns, n = exchanged_columns(ranks[0].spec), len(members)
        rows_s = sum(speed.transfer_s(16 * sum_fours(MAX_ROWS, each), n) for each in columns)
        layer_s = max(limit.speeds.layer_s for limit in limits)
        return SplitPlan(
            "tensor",
            members,
            parts,
            (range(self.spec.n_layers),) * n,
            plans,
            between_ranks_s([4 * each for each in columns], n, layer_s, speed),
            len(columns),
            MAX_ROWS / rows_s,
        )

    def _ranks(
        self, extra_bytes: int, *, is_at_once: bool
    ) -> tuple[tuple[int, ...], tuple[float, ...], list[DeviceLimits]]:
        """Places of the members that take part, their parts, and what each may use.

        extra_bytes: what a rank may hold besides its part and its working memory. is_at_once: they run together.
        """
        limits = shared_limits(self.members, is_at_once=is_at_once)
        n_ctx, max_rows, head_rows, options = self.how
        needs = Needs(self.spec, self.tensors, max_rows, head_rows, options.type_k, options.type_v)
        room = needs.room_for_one(n_ctx or min(USUAL_CONTEXT, self.spec.n_ctx_train))
        working_bytes, all_bytes = needs.arena_bytes(room), sum(needs.by_part(room).values())
        parts = self.asked or proportions(limits, all_bytes - working_bytes, working_bytes + extra_bytes)
        places = tuple(place for place, part in enumerate(parts) if part)
        if len(places) < 2:
            raise InvalidParameter("a model is split between two devices or more, and only one has a part of it")
        return places, tuple(parts[place] for place in places), [limits[place] for place in places]

    def _plans(
        self,
        members: Sequence[int],
        limits: Sequence[DeviceLimits],
        parts: Sequence[Part],
        share: ExchangeShare = NO_EXCHANGE,
    ) -> tuple[MemoryPlan, ...]:
        """The plan of each rank, with the room that all of them have. Raises OutOfDeviceMemory that names the rank."""
        made: list[MemoryPlan] = []
        for rank, (place, limit, part) in enumerate(zip(members, limits, parts, strict=True)):
            if rank and limit == limits[rank - 1] and _are_equally_large(part, parts[rank - 1]):
                made.append(made[-1])
                continue
            try:
                made.append(plan(part[0], part[1], limit, *self.how, exchange=share))
            except OutOfDeviceMemory as error:
                raise OutOfDeviceMemory(f"rank {rank} ({self.members[place].name}): {error}") from error
        room = _common_room(made)
        return tuple(
            one if _room_of(one) == room else plan(spec, tensors, limit, *self.how, room, share)
            for one, limit, (spec, tensors) in zip(made, limits, parts, strict=True)
        )


def shared_limits(members: Sequence[Member], *, is_at_once: bool) -> list[DeviceLimits]:
    """What each member may use: its part of a card that several are, and of the system memory that all share.

    is_at_once: they also share the card's speed.
    """
    n_same = Counter(member.card for member in members)
    n_cards = sum(1 for member in members if member.limits.kind == "discrete")
    limits = []
    for member in members:
        n, limit = n_same[member.card], member.limits
        spill = limit.spill_bytes // (max(n_cards, 1) if limit.kind == "discrete" else n)
        speeds = limit.speeds
        if is_at_once:
            speeds = replace(speeds, local_bytes_per_s=speeds.local_bytes_per_s / n)
        limits.append(replace(limit, memory_bytes=limit.memory_bytes // n, spill_bytes=spill, speeds=speeds))
    return limits


def exchange_share(ranks: Sequence[RankModel], members: Sequence[Member]) -> ExchangeShare:
    """What each of these ranks needs for exchanges with the others. Raises OutOfDeviceMemory where a device cannot bind
    the memory that all share."""
    n_vocab, most = ranks[-1].vocabulary.stop, max(len(rank.vocabulary) for rank in ranks)
    most_lists = 0 if most == n_vocab else n_lists(most)
    layout = ExchangeLayout.of([member.limits.kind == "cpu" for member in members])
    exchanged = Exchanged.of(ranks[0].spec.d_model, most_lists, n_exchanges_of(ranks[0].spec))
    least = min(members, key=lambda member: member.limits.max_buffer_bytes)
    n_bytes = layout.n_bytes(exchanged, min(MOST_BYTES, least.limits.max_buffer_bytes))
    if n_bytes > least.limits.max_buffer_bytes:
        raise OutOfDeviceMemory(
            f"-sm tensor needs {size(n_bytes)} of system memory that {counted(len(members), 'device')} share, and "
            f"{least.name} can bind {size(least.limits.max_buffer_bytes)} at once; name fewer with -dev"
        )
    return ExchangeShare.of(n_bytes, len(ranks), most_lists)


def n_exchanges_of(rank: ModelSpec) -> int:
    """Exchanges of a step: its sums over ranks, and one of candidates for the next token. rank: the model of one."""
    return len(exchanged_columns(rank))


def exchanged_columns(rank: ModelSpec) -> list[int]:
    """Numbers of a row of each exchange of a step; candidates are counted like a sum of hidden states."""
    return [*(op.width for op in decoder(rank) if isinstance(op, AllReduce)), rank.d_model]


def _choice(members: Sequence[Member], plans: Mapping[SplitMode, SplitPlan]) -> tuple[SplitMode, str]:
    """The mode that is taken by default, and why."""
    chosen = next(mode for mode in MODES if mode in plans)
    reason = "no simpler way fits" if chosen != "none" else "no split is expected to be faster"
    for mode in MODES[MODES.index(chosen) + 1 :]:
        if mode not in plans or (mode == "tensor" and not _are_alike([members[i] for i in plans[mode].members])):
            continue
        factor = plans[mode].tokens_per_s / plans[chosen].tokens_per_s
        if factor > WORTH_IT:
            reason = f"it is expected to be {factor:.1f} times as fast as {chosen}"
            chosen = mode
    return chosen, reason


def _are_equally_large(part: Part, other: Part) -> bool:
    """Whether parts of a model have tensors of the same shapes."""
    shapes = [[(name, info.shape, info.format) for name, info in tensors.items()] for _, tensors in (part, other)]
    return part[0] == other[0] and shapes[0] == shapes[1]


def _are_alike(members: Sequence[Member]) -> bool:
    speeds = [member.limits.speeds.local_bytes_per_s for member in members]
    return len({member.limits.kind for member in members}) == 1 and max(speeds) <= MOST_UNEQUAL * min(speeds)


def _room_of(made: MemoryPlan) -> Room:
    return Room(made.n_ctx, made.n_sequences, made.n_blocks, made.n_window_blocks, made.n_state_slots)


def _common_room(plans: Sequence[MemoryPlan]) -> Room:
    """What all have room for; a rank without windows or states has 0 of them, which does not count."""
    rooms = [_room_of(made) for made in plans]
    return Room(
        min(room.n_ctx for room in rooms),
        min(room.n_sequences for room in rooms),
        min(room.n_blocks for room in rooms),
        min((room.n_window_blocks for room in rooms if room.n_window_blocks), default=0),
        min((room.n_state_slots for room in rooms if room.n_state_slots), default=0),
    )
