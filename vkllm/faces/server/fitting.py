"""Whether a model fits beside others: by plan, as `vkllm plan` makes it, before anything is unloaded or loaded.

It knows plans and devices; it allocates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vkllm.api.loading import LoadOptions, plan_options
from vkllm.api.planning import ModelToPlan
from vkllm.errors import OutOfDeviceMemory
from vkllm.gpu.device.limits import limits_from_child
from vkllm.model.memory.limits import DeviceLimits, Tier
from vkllm.model.memory.plan import MemoryPlan, PlanOptions
from vkllm.parameters import named_devices
from vkllm.store import FoundModel

_SPEED_SHARE = 0.9
"""A model fits where it keeps this share of the speed that it has alone."""


class Fitting:
    """Plans models of a server with the options that they are loaded with. Safe to use from one thread at a time."""

    def __init__(self, options: LoadOptions, limits: DeviceLimits | None = None) -> None:
        """limits: of the device while it holds none of the models; else `look` finds them out."""
        self._options = options
        self._limits = limits

    def look(self) -> None:
        """Finds out what the device can hold; called while it holds none of the models. Takes about a second."""
        if self._limits is None:
            named = named_devices("device", self._options.get("device"))
            self._limits = limits_from_child(named[0] if named else None)

    def fits(self, model: FoundModel, n_ctx: int | None, others: Sequence[MemoryPlan]) -> bool:
        """Whether a model can be loaded beside others without becoming slow or short. Raises what opening it raises."""
        if model.path is None or self._limits is None:
            return False
        to_plan = ModelToPlan.open(model.path, n_ctx)
        limits, options = self._limits, self._plan_options()
        alone = to_plan.plan(limits, options)
        try:
            beside = to_plan.plan(without(limits, others), options)
        except OutOfDeviceMemory:
            return False
        return beside.n_ctx >= alone.n_ctx and beside.tokens_per_s >= _SPEED_SHARE * alone.tokens_per_s

    def _plan_options(self) -> PlanOptions:
        return plan_options(self._options)


def _used(others: Sequence[MemoryPlan], is_local: bool) -> int:
    tiers = [tier for plan in others for tier in plan.tiers]
    return sum(tier.used_bytes for tier in tiers if (tier.tier is Tier.LOCAL) == is_local)


def without(limits: DeviceLimits, others: Sequence[MemoryPlan]) -> DeviceLimits:
    """What is left of a device beside models."""
    return replace(
        limits,
        memory_bytes=max(limits.memory_bytes - _used(others, True), 0),
        spill_bytes=max(limits.spill_bytes - _used(others, False), 0),
    )
