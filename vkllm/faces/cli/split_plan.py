"""`vkllm plan` for several devices: what each would hold and how fast each way of splitting would be.

It knows how to print `SplitPlans`, not how they are made.
"""

from __future__ import annotations

from typing import Any

from vkllm.faces.terminal import counted
from vkllm.model.memory.split_plan import MODES, SplitMode, SplitPlans
from vkllm.sizes import size

_TITLES = ("split", "device", "holds", "weights", "cache", "working", "free", "tok/s", "half full")
_AT_LEFT = 3


def split_lines(made: SplitPlans, taken: SplitMode, *, is_asked: bool = False) -> list[str]:
    """A table with a row for each rank of each way of splitting, why others are impossible, and what is taken."""
    rows: list[tuple[str, ...]] = [_TITLES]
    for mode in MODES:
        if mode in made.plans:
            rows += _rows(made, mode)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < _AT_LEFT else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += ["", *(f"{mode:9} impossible: {error}" for mode, error in made.refusals.items())]
    lines.append(_taken(made, taken, is_asked=is_asked))
    speeds = [f"{one.name} {one.limits.speeds.local_bytes_per_s / 1e9:.3g} GB/s" for one in made.members]
    are_measured = all(member.limits.speeds.is_measured for member in made.members)
    lines.append(f"reading   {', '.join(dict.fromkeys(speeds))} ({'measured' if are_measured else 'assumed'})")
    if "tensor" in made.plans:
        tensor, speed = made.plans["tensor"], made.speed
        lines.append(
            f"exchange  {1e3 * tensor.between_s:.2f} ms a token: {counted(tensor.n_exchanges, 'exchange')} of "
            f"{1e6 * tensor.between_s / tensor.n_exchanges:.1f} us, over {speed.bytes_per_s / 1e9:.3g} GB/s "
            f"({'measured' if speed.is_measured else 'assumed'})"
        )
    return lines


def _taken(made: SplitPlans, taken: SplitMode, *, is_asked: bool) -> str:
    if is_asked:
        return f"taken     {taken}, as asked for"
    if taken == made.chosen:
        return f"taken     {taken}: {made.reason}"
    return f"taken     {taken}; -sm {made.chosen} is another way: {made.reason}"


def several_line(made: SplitPlans, devices: str) -> str:
    """What several devices would bring to a model that is planned on one. devices: as -dev takes them."""
    speed = f"{made.plans[made.chosen].tokens_per_s:.1f} tok/s with half of the context in use"
    if made.chosen == "none":
        return f"several   -dev {devices} brings nothing: {made.reason}"
    return f"several   -dev {devices} takes {made.chosen}, expected {speed}: {made.reason}"


def _rows(made: SplitPlans, mode: SplitMode) -> list[tuple[str, ...]]:
    found = made.plans[mode]
    rows = []
    for rank, (place, plan) in enumerate(zip(found.members, found.plans, strict=True)):
        layers = found.layers[rank]
        match mode:
            case "none":
                holds = "all"
            case "layer":
                holds = f"layers {layers.start} to {layers.stop - 1}" if len(layers) > 1 else f"layer {layers.start}"
            case "tensor":
                holds = f"{100 * found.parts[rank]:.0f} % of the matrices"
        slow = sum(tier.weights_bytes for tier in plan.tiers if tier.tier == "host")
        free = sum(tier.free_bytes for tier in plan.tiers if tier.tier != "host")
        speeds = (f"{1 / found.token_s(0):.1f}", f"{found.tokens_per_s:.1f}") if rank == 0 else ("", "")
        rows.append(
            (
                mode if rank == 0 else "",
                f"{place} {made.members[place].name}",
                holds + (f", {size(slow)} of it in system memory" if slow else ""),
                *map(size, (plan.weights_bytes, plan.cache_bytes, plan.arena_bytes, free)),
                *speeds,
            )
        )
    return rows


def split_fields(made: SplitPlans) -> dict[str, Any]:
    """The same for programs."""
    return {
        "chosen": made.chosen,
        "reason": made.reason,
        "devices": [
            {
                "name": member.name,
                "kind": member.limits.kind,
                "bytes_per_s": member.limits.speeds.local_bytes_per_s,
                "is_measured": member.limits.speeds.is_measured,
                "can_exchange": member.can_exchange,
            }
            for member in made.members
        ],
        "modes": {
            mode: {
                "tokens_per_s": found.tokens_per_s,
                "tokens_per_s_empty": 1 / found.token_s(0),
                "between_s": found.between_s,
                "most_prompt_tokens_per_s": found.most_prompt_rows_per_s,
                "ranks": [
                    {
                        "device": place,
                        "part": part,
                        "first_layer": layers.start,
                        "n_layers": len(layers),
                        "weights_bytes": plan.weights_bytes,
                        "cache_bytes": plan.cache_bytes,
                        "arena_bytes": plan.arena_bytes,
                    }
                    for place, part, layers, plan in zip(
                        found.members, found.parts, found.layers, found.plans, strict=True
                    )
                ],
            }
            for mode, found in made.plans.items()
        },
        "refusals": {mode: str(error) for mode, error in made.refusals.items()},
    }
