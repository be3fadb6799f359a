"""Plans models and prints a line of JSON for each: `python -m vkllm.faces.tui.fit_worker`, a FitQuestion on stdin.

A process of its own, because looking for devices loads drivers, and a driver that crashes must not take the chat with
it. Models come twice where the device's memory has to be timed first, which takes seconds: without a speed, then with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vkllm.api.planning import ModelToPlan
from vkllm.errors import OutOfDeviceMemory, VkllmError
from vkllm.faces.chat.model_check import without_held
from vkllm.faces.tui.fit import Fit, FitQuestion, ModelToFit, read_question
from vkllm.gpu.device.limits import device_limits
from vkllm.gpu.device.probe import choose_device, devices
from vkllm.gpu.measure.speeds import measured_speeds
from vkllm.model.memory.limits import DeviceLimits, Tier, without_margin
from vkllm.model.memory.plan import PlanOptions

_BOUNDLESS = DeviceLimits(memory_bytes=2**60, max_binding_bytes=2**60, max_allocation_bytes=2**60)


def fits(question: FitQuestion) -> Iterator[tuple[str, Fit]]:
    """Names of models and how they fit. Raises NoDevice, or InvalidParameter for a device that is not there."""
    loading = dict(question.loading)
    n_ctx, device = loading.pop("n_ctx", None), loading.pop("device", None)
    options = PlanOptions(**loading)
    info = choose_device(devices(), device)
    limits = without_held(device_limits(info), question.held_bytes)
    opened: dict[str, ModelToPlan | VkllmError] = {}
    is_timed = info.type == "cpu"  # there is nothing to time
    while True:
        for model in question.models:
            if model.path is None:
                fit = _fit_of_catalogue(model, limits, options)
            else:
                if model.name not in opened:
                    opened[model.name] = _open(model.path, n_ctx)
                fit = _fit_of_file(opened[model.name], limits, options)
            yield model.name, fit if is_timed else replace(fit, tokens_per_s=0.0)
        if is_timed:
            return
        limits = replace(limits, speeds=measured_speeds(info))
        is_timed = True


def _open(path: str, n_ctx: int | None) -> ModelToPlan | VkllmError:
    try:
        return ModelToPlan.open(Path(path), n_ctx)
    except VkllmError as error:
        return error


def _fit_of_file(model: ModelToPlan | VkllmError, limits: DeviceLimits, options: PlanOptions) -> Fit:
    fast, available = _available(limits, options)
    if isinstance(model, VkllmError):
        return Fit(limits.kind, problem=str(model))
    try:
        plan = model.plan(limits, options)
    except OutOfDeviceMemory as error:
        needed = replace(model, n_ctx=model.n_ctx or 1).plan(_BOUNDLESS, PlanOptions(options.type_k, options.type_v))
        reason, _, advice = str(error).rpartition("; ")
        if needed.total_bytes <= available:  # no buffer may be so large
            return Fit(limits.kind, problem=str(error))
        return Fit(limits.kind, needed.total_bytes, 0, fast, available, advice=advice if reason else "")
    except VkllmError as error:
        return Fit(limits.kind, problem=str(error))
    on_device = sum(tier.used_bytes for tier in plan.tiers if tier.tier is Tier.LOCAL)
    return Fit(limits.kind, plan.total_bytes, on_device, fast, available, 1 / plan.token_s(0))


def _fit_of_catalogue(model: ModelToFit, limits: DeviceLimits, options: PlanOptions) -> Fit:
    """From sizes alone: what does not fit into the first memory is read from the second one."""
    fast, available = _available(limits, options)
    needed = model.memory_bytes
    on_device = min(needed, fast)
    share = on_device / needed
    read_s = model.n_bytes * (
        share / limits.bytes_per_s(Tier.LOCAL) + (1 - share) / limits.bytes_per_s(limits.spill_tier)
    )
    return Fit(limits.kind, needed, on_device, fast, available, 1 / read_s)


def _available(limits: DeviceLimits, options: PlanOptions) -> tuple[int, int]:
    """Bytes that models may take of the fastest memory, and of all."""
    fast, slow = without_margin(limits.memory_bytes), without_margin(limits.spill_bytes)
    given = [limit for limit in (options.vram_limit, options.ram_limit) if limit is not None]
    if limits.kind != "discrete":
        return min(fast, *given, fast + slow), min(fast + slow, *given, fast + slow)
    fast = fast if options.vram_limit is None else min(fast, options.vram_limit)
    slow = slow if options.ram_limit is None else min(slow, options.ram_limit)
    return fast, fast + slow


def main() -> None:
    """Answers one question."""

    def say(**fields: Any) -> None:
        print(json.dumps(fields), flush=True)

    try:
        for name, fit in fits(read_question(sys.stdin.read())):
            say(name=name, fit=asdict(fit))
    except VkllmError as error:
        say(problem=str(error))


if __name__ == "__main__":
    main()
