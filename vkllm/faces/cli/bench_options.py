"""What `vkllm bench` is asked for: tests and ways to load models, from lists as llama-bench takes them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from vkllm.errors import InvalidParameter
from vkllm.faces.cli.bench import Case, Placement, Setup, Split
from vkllm.model.memory.needs import CACHE_TYPES
from vkllm.model.memory.plan import PlanOptions


def setups(
    models: Sequence[str],
    n_gpu_layers: Sequence[int | None],
    devices: Sequence[str | tuple[str, ...] | None],
    types_k: Sequence[str],
    types_v: Sequence[str],
    placements: Sequence[Placement] = (Placement(),),
    spec: str = "off",
    split: Split | None = None,
) -> list[Setup]:
    """All combinations in llama-bench's order. Raises InvalidParameter for an unknown type or way of drafting."""
    split = split or Split()
    PlanOptions(
        spec=spec,
        split_mode=split.split_mode,
        tensor_split=split.tensor_split or (),
        num_shards=split.num_shards,
    )
    for option, types in (("-ctk", types_k), ("-ctv", types_v)):
        for unknown in set(types) - CACHE_TYPES.keys():
            raise InvalidParameter(f"{option} takes {' or '.join(CACHE_TYPES)}, not {unknown!r}")
    return [
        Setup(model, device, type_k, type_v, layers, placement, spec=spec, split=split)
        for model, layers, placement, device, type_k, type_v in itertools.product(
            models, n_gpu_layers, placements, devices, types_k, types_v
        )
    ]


def layer_counts(texts: Sequence[str]) -> list[int | None]:
    """Values of -ngl: lists of numbers, and all."""
    counts: list[int | None] = []
    for text in ",".join(texts).split(","):
        counts += [None] if text.strip() in ("all", "auto", "-1") else numbers([text], "-ngl")
    return counts


def placements(n_cpu_moe: Sequence[str], override_tensor: Sequence[str]) -> list[Placement]:
    """Values of -ncmoe and -ot, which stands for several tests where it has commas, as in llama-bench: expressions of
    the same test have semicolons between them, and none is a test too. Raises InvalidParameter."""
    groups = [tuple(part for part in text.split(";") if part) for text in ",".join(override_tensor).split(",")]
    return [Placement(*made) for made in itertools.product(numbers(n_cpu_moe, "-ncmoe"), groups)]


def numbers(texts: Sequence[str], option: str) -> list[int]:
    """Numbers of an option that takes llama-bench's lists: "512", "128,256", "0-512+128" or "64-512*2"."""
    found: list[int] = []
    for text in ",".join(texts).split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?", text.strip())
        if match is None:
            raise InvalidParameter(f"{option} takes numbers such as 512, 128,256 or 64-512*2, not {text!r}")
        value, last, step = int(match[1]), int(match[2] or match[1]), int(match[4] or 1)
        while value <= last:
            found.append(value)
            following = value * step if match[3] == "*" else value + step
            if following <= value:
                raise InvalidParameter(f"{option}: the range {text!r} does not end")
            value = following
    return found


def cases(n_prompt: Sequence[int], n_gen: Sequence[int], pairs: Sequence[str], n_depth: Sequence[int]) -> list[Case]:
    """llama-bench's tests in its order. pairs: "pp,tg" for tests of both together; a 0 leaves a test out."""
    both = [numbers([pair], "-pg") for pair in pairs]
    for pair, text in zip(both, pairs, strict=True):
        if len(pair) != 2:
            raise InvalidParameter(f"-pg takes two numbers such as 512,128, not {text!r}")
    found = []
    for depth in n_depth:
        found += [Case(n, 0, depth) for n in n_prompt]
        found += [Case(0, n, depth) for n in n_gen]
        found += [Case(prompt, gen, depth) for prompt, gen in both]
    found = [case for case in found if case.n_prompt or case.n_gen]
    if not found:
        raise InvalidParameter("there is nothing to measure; give -p, -n or -pg a number above 0")
    return found
