"""What each device of several holds of a model, planned as it will be loaded: one room for all, a plan for each.

Which devices take part, and how much of the model each has, is decided in `split_plan.py`. Every device has blocks and
states for the same sequences, so a place in the cache has the same number on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vkllm.errors import InvalidParameter, OutOfDeviceMemory
from vkllm.formats.gguf import TensorInfo
from vkllm.model.memory.exchange_memory import NO_EXCHANGE, ExchangeShare
from vkllm.model.memory.limits import DeviceLimits, Tier
from vkllm.model.memory.memory_plan import MemoryPlan
from vkllm.model.memory.needs import Needs
from vkllm.model.memory.options import PlanOptions
from vkllm.model.memory.plan import plan
from vkllm.model.memory.sequences import Room, room_for, with_blocks
from vkllm.model.memory.split_plan import (
    MODES,
    Member,
    SplitMode,
    SplitPlans,
    exchange_share,
    plan_splits,
    shared_limits,
)
from vkllm.model.memory.step_time import ExchangeSpeed
from vkllm.model.shards.cuts import WHOLE, CachedParts
from vkllm.model.shards.rank_model import rank_models
from vkllm.model.spec import ModelSpec
from vkllm.model.stages import stages

Model = tuple[ModelSpec, Mapping[str, TensorInfo]]


@dataclass(frozen=True)
class Rank:
    """One device's share. member: its place in the list of devices. spec, tensors: the part of the model that it has,
    a model of its own. vocabulary: the tokens whose logits it makes, if it has the head. cached: what it keeps of
    a sequence, where layers are divided."""

    member: int
    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]
    plan: MemoryPlan
    vocabulary: range
    cached: CachedParts = WHOLE


@dataclass(frozen=True)
class Division:
    """A model on several devices, or on one of them (mode "none", one rank). splits: all ways that there were."""

    mode: SplitMode
    ranks: tuple[Rank, ...]
    splits: SplitPlans

    @property
    def plan(self) -> MemoryPlan:
        """The plan of all ranks together; its tiers are those of the first device, then those of the next."""
        plans = [rank.plan for rank in self.ranks]
        return side_by_side(plans, self.splits.plans["tensor"].between_s) if self.mode == "tensor" else joined(plans)


def divide(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    members: Sequence[Member],
    n_ctx: int,
    max_rows: int,
    head_rows: int,
    options: PlanOptions,
    speed: ExchangeSpeed | None = None,
) -> Division:
    """Divides a model between devices as options ask for, or as is expected to be fastest; arguments as of `plan`.
    speed: of exchanges between them.

    Raises OutOfDeviceMemory, UnsupportedDevice, InvalidParameter.
    """
    if options.spec == "mtp":
        raise InvalidParameter(
            "spec (--spec) mtp drafts on one device only, not on several; choose auto, or one device with -dev"
        )
    sizes, parts = (n_ctx, max_rows, head_rows), options.tensor_split
    splits = plan_splits(spec, tensors, members, *sizes, options, tensor_split=parts, speed=speed)
    made = splits.of(_mode(splits, options))
    limits = shared_limits(members, is_at_once=made.mode == "tensor")
    if made.mode == "none":
        (place,) = made.members
        return Division("none", (Rank(place, spec, tensors, made.plans[0], range(spec.n_vocab)),), splits)
    spec = replace(spec, predictors=())
    models: list[Model]
    owned: list[tuple[range, CachedParts]]
    share = NO_EXCHANGE
    if made.mode == "tensor":
        parted = rank_models(spec, tensors, made.parts)
        share = exchange_share(parted, [members[place] for place in made.members])
        models = [(each.spec, each.tensors) for each in parted]
        owned = [(each.vocabulary, each.cached) for each in parted]
    else:
        models = [(part, tensors) for part in stages(spec, made.layers)]
        owned = [(range(spec.n_vocab), WHOLE)] * len(models)
    used = [limits[place] for place in made.members]
    plans = _plans((spec, tensors), models, used, n_ctx, max_rows, head_rows, options, share)
    shares = zip(made.members, models, plans, owned, strict=True)
    ranks = (Rank(place, *model, one, *own) for place, model, one, own in shares)
    return Division(made.mode, tuple(ranks), splits)


def _mode(splits: SplitPlans, options: PlanOptions) -> SplitMode | None:
    """What is asked for; where only a number of devices is, the faster way to use them."""
    if options.split_mode is not None:
        return next(mode for mode in MODES if mode == options.split_mode)
    if options.num_shards is None and not options.tensor_split:
        return splits.chosen
    several = [mode for mode in MODES if mode in splits.plans and mode != "none"]
    if splits.chosen in several or not several:
        return splits.chosen
    return several[0]


def _plans(
    whole: Model,
    models: Sequence[Model],
    limits: Sequence[DeviceLimits],
    n_ctx: int,
    max_rows: int,
    head_rows: int,
    options: PlanOptions,
    share: ExchangeShare,
) -> tuple[MemoryPlan, ...]:
    """A plan for each rank, with as many sequences and blocks as all have room for."""

    def of_each(n_ctx: int, room: Room | None = None) -> tuple[MemoryPlan, ...]:
        ranks = zip(models, limits, strict=True)
        return tuple(plan(*model, limit, n_ctx, max_rows, head_rows, options, room, share) for model, limit in ranks)

    alone = of_each(n_ctx)
    needs = Needs(*whole, max_rows, head_rows, options.type_k, options.type_v)
    one = needs.room_for_one(min(each.n_ctx for each in alone))
    n_blocks = max(min(each.n_blocks for each in alone), one.n_blocks)

    def planned(n_sequences: int, n_blocks: int) -> tuple[MemoryPlan, ...]:
        return of_each(one.n_ctx, with_blocks(n_blocks, room_for(n_sequences, one, whole[0]), one, whole[0]))

    for n_sequences in range(min(each.n_sequences for each in alone), 1, -1):
        try:
            return planned(n_sequences, n_blocks)
        except OutOfDeviceMemory:  # windows and states of the whole model may take more than those of a part
            continue
    return planned(1, one.n_blocks)


def side_by_side(plans: Sequence[MemoryPlan], between_s: float) -> MemoryPlan:
    """The plan of ranks that compute every token together, and meanwhile exchange numbers for between_s seconds: each
    tier is read as much faster as ranks read at the same time."""
    halfway = plans[0].n_ctx / 2
    times = [plan.token_s(halfway) - plan.overhead_s for plan in plans]
    factor = sum(times) / max(times)
    return replace(
        plans[0],
        tiers=tuple(replace(t, bytes_per_s=factor * t.bytes_per_s) for plan in plans for t in plan.tiers),
        overhead_s=max(plan.overhead_s for plan in plans) + between_s,
    )


def joined(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    """The plan of ranks that compute one after the other, each some of the layers."""
    first = plans[0]
    return replace(
        first,
        matrices={weights: rows for each in reversed(plans) for weights, rows in each.matrices.items()},
        cache_tiers=tuple(
            next((tier for tier, is_held in places if is_held), Tier.LOCAL)
            for places in zip(*(_places(each) for each in plans), strict=True)
        ),
        tiers=tuple(tier for each in plans for tier in each.tiers),
        overhead_s=sum(each.overhead_s for each in plans),
    )


def _places(plan: MemoryPlan) -> list[tuple[Tier, bool]]:
    """The tier of each layer's cache, and whether the layer is one of the plan's."""
    held = {int(name.split(".")[1]) for weights in plan.matrices for name in weights if name.startswith("blk.")}
    return [(tier, number in held) for number, tier in enumerate(plan.cache_tiers)]
