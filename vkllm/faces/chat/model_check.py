"""Finds out what is wrong with a model before the one that is open is closed for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vkllm.api.planning import ModelToPlan
from vkllm.gpu.device.limits import limits_from_child
from vkllm.model.memory.limits import DeviceLimits, Tier
from vkllm.model.memory.plan import PlanOptions
from vkllm.store import FoundModel, find_model, look_up

if TYPE_CHECKING:
    from vkllm import LLM

OnProgress = Callable[[str, int, int], None]


def check_model(
    model: str | FoundModel, loading: Mapping[str, Any], open_llm: LLM | None, on_progress: OnProgress | None = None
) -> FoundModel:
    """Fetches a model if it is not here, reads all of it but its weights, and plans it; returns what is to be loaded.

    loading: arguments of LLM. open_llm: the model that is open now, whose memory will be free by then; None if there is
    none. Raises any VkllmError that loading the model would raise, as far as its file and a plan can tell.
    """
    found = look_up(model)
    path = find_model(found, on_progress=on_progress)
    if on_progress is not None:
        on_progress(f"checking {path.name}", 0, 0)
    to_plan = ModelToPlan.open(path, loading.get("n_ctx"))
    to_plan.read_text()
    options = PlanOptions(**{key: value for key, value in loading.items() if key not in ("n_ctx", "device")})
    limits = limits_from_child(loading.get("device"))
    if limits is not None:  # else the engine will say more
        to_plan.plan(without_held(limits, held_bytes(open_llm)), options)
    return replace(found, path=path, file=to_plan.file)


def held_bytes(llm: LLM | None) -> dict[str, int]:
    """By tier, what an open model holds, and gives back before another one is opened."""
    if llm is None:
        return {}
    held = {str(tier.tier): tier.used_bytes for tier in llm.plan.tiers}
    if moved := llm.moved_bytes:
        slowest = str(llm.plan.tiers[-1].tier)
        held[Tier.LOCAL] -= moved
        held[slowest] += moved
    return held


def without_held(limits: DeviceLimits, held: Mapping[str, int]) -> DeviceLimits:
    """A device's limits as they are once what is held is given back. held: bytes by tier."""
    local = held.get(Tier.LOCAL, 0)
    return replace(
        limits,
        memory_bytes=limits.memory_bytes + local,
        spill_bytes=limits.spill_bytes + sum(held.values()) - local,
    )
