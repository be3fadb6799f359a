"""`vkllm plan`: where a model's parts would lie, what stays free, and the speed to expect.

It knows how to print a plan; `vkllm.plan_model` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vkllm import ModelPlan, plan_model
from vkllm.faces.cli.split_plan import several_line, split_fields, split_lines
from vkllm.faces.terminal import counted, say
from vkllm.model.memory.kernel_sizes import KV_BLOCK
from vkllm.model.memory.plan import MemoryPlan
from vkllm.sizes import size


def print_plan(model: str, loading: dict[str, Any], *, as_json: bool) -> None:
    """Plans and prints. loading: as `vkllm.faces.cli.loading` makes them. Raises any VkllmError."""
    made = plan_model(model, **loading)
    if as_json:
        say(json.dumps(fields(made), indent=2))
        return
    say("\n".join(lines(made, model)))
    if made.missing_bytes:
        say(f"file      not on this machine; `vkllm pull {model}` fetches {size(made.missing_bytes)}")


def lines(made: ModelPlan, model: str) -> list[str]:
    """The plan for people. model: its name, as asked for."""
    plan, speeds = made.plan, made.limits.speeds
    head = [
        f"{made.path.name if made.path.suffix == '.gguf' else model} on {made.device_name}",
        f"context   {counted(plan.n_ctx, 'token')} (keys {made.options.type_k}, values {made.options.type_v})",
        *([_parallel(plan)] if made.options.n_parallel else []),
        *([f"states    {size(plan.states_bytes)} of the cache, whatever the context"] if plan.n_state_slots else []),
        "",
    ]
    if made.division is not None:
        is_asked = made.options.split_mode is not None
        return [*head, *split_lines(made.division.splits, made.division.mode, is_asked=is_asked)]
    contents = weights_by_tier(made)
    rows: list[tuple[str, ...]] = [("memory", "weights", "cache", "working", "used", "free")]
    for tier in plan.tiers:
        amounts = (tier.weights_bytes, tier.cache_bytes, tier.arena_bytes, tier.used_bytes, tier.free_bytes)
        rows.append((tier.tier, *map(size, amounts)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join((name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))))
        for name, *cells in rows
    ]
    holdings = [f"{tier.tier:9} {', '.join(contents[tier.tier])}" for tier in plan.tiers if contents[tier.tier]]
    if n_unloaded := len(made.spec.predictors) - plan.n_predictors:
        holdings.append(f"{'unloaded':9} {counted(n_unloaded, 'head')} for further tokens")
    basis = "measured" if speeds.is_measured else "assumed"
    reads = ", ".join(f"{tier.tier} {tier.bytes_per_s / 1e9:.3g} GB/s" for tier in plan.tiers if tier.used_bytes)
    return [
        *head,
        *table,
        "",
        *holdings,
        f"expected  {1 / plan.token_s(0):.1f} tok/s, {plan.tokens_per_s:.1f} with half of the context in use",
        f"reading   {reads} ({basis})",
        *([several_line(made.others, ",".join(made.other_devices))] if made.others is not None else []),
    ]


def _parallel(plan: MemoryPlan) -> str:
    """How many sequences run at once, and what they share."""
    if plan.n_sequences == 1:
        return "parallel  1 sequence at a time"
    return f"parallel  {plan.n_sequences} sequences at once, which share a cache of {plan.n_blocks * KV_BLOCK} tokens"


def fields(made: ModelPlan) -> dict[str, Any]:
    """The plan for programs."""
    plan = made.plan
    speeds = plan if made.division is None else made.division.splits.plans[made.division.mode]
    contents = weights_by_tier(made)
    return {
        "model": str(made.path),
        "is_here": not made.missing_bytes,
        "missing_bytes": made.missing_bytes,
        "device": made.device_name,
        "kind": made.limits.kind,
        "n_ctx": plan.n_ctx,
        "n_sequences": plan.n_sequences,
        "n_blocks": plan.n_blocks,
        "n_window_blocks": plan.n_window_blocks,
        "n_state_slots": plan.n_state_slots,
        **asdict(made.options),
        "tiers": [
            {
                **asdict(tier),
                "used_bytes": tier.used_bytes,
                "free_bytes": tier.free_bytes,
                "weights": contents[tier.tier],
                "cache_layers": plan.cache_tiers.count(tier.tier),
            }
            for tier in plan.tiers
        ],
        "matrices": [
            {
                "tensors": part.stack.tensors,
                "first_row": part.first_row,
                "n_rows": part.n_rows,
                "n_bytes": part.n_bytes,
                "tier": part.tier,
            }
            for parts in plan.matrices.values()
            for part in parts
        ],
        **_split(made),
        "is_measured": made.limits.speeds.is_measured,
        "tokens_per_s": speeds.tokens_per_s,
        "tokens_per_s_empty": 1 / speeds.token_s(0),
    }


def _split(made: ModelPlan) -> dict[str, Any]:
    """How it is split, or could be."""
    if made.division is not None:
        return {"split": {"taken": made.division.mode, **split_fields(made.division.splits)}}
    return {} if made.others is None else {"split": {"taken": "none", **split_fields(made.others)}}


def weights_by_tier(made: ModelPlan) -> dict[str, list[str]]:
    """What each tier holds of the weights, in words."""
    tiers_of: dict[str, set[str]] = {}
    for weights, rows in made.plan.matrices.items():
        tiers_of.setdefault(_place_of(weights[0], made.spec.output_weight), set()).update(part.tier for part in rows)
    contents = {}
    for tier in (tier.tier for tier in made.plan.tiers):
        whole = [place for place, tiers in tiers_of.items() if tiers == {tier}]
        divided = [place for place, tiers in tiers_of.items() if tier in tiers and len(tiers) > 1]
        contents[str(tier)] = [*_words(whole), *(f"part of {place}" for place in _words(divided))]
    return contents


def _place_of(tensor: str, output_weight: str) -> str:
    if tensor.startswith("blk."):
        return f"layer {tensor.split('.')[1]}"
    return "vocabulary projection" if tensor == output_weight else "embedding table"


def _words(places: Sequence[str]) -> list[str]:
    """Layers as ranges, then the others."""
    numbers = sorted(int(place.split()[1]) for place in places if place.startswith("layer "))
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][-1] = number
        else:
            runs.append([number, number])
    named = [f"layer {first}" if first == last else f"layers {first} to {last}" for first, last in runs]
    return named + sorted(place for place in places if not place.startswith("layer "))
