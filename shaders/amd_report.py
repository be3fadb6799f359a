"""The report on the shipped modules on AMD GPUs (docs/amd.md), and how long decoding computes on a Steam Deck.

Knows the report's words and a model of the arithmetic; `amd.py` compiles.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from amd import FAMILIES, RDNA, SHADERS, Compiled, FamilyResult, Use, compile_family

from vkllm.formats.quants import BLOCK, weight_format

PAGE = SHADERS.parent / "docs" / "amd.md"

MATVECS = ("matvec", "matvec_fused")
"""The kernels that read the weights; the others of a step do less than a hundredth of the arithmetic."""

DOTS_OF_BLOCK = BLOCK // 4 * 2
"""Integer dot products of a weight block with a q16 activation block."""

SLOW = re.compile(r"\tv_(exp|log|rcp|rsq|sqrt|sin|cos|mul_lo|mul_hi)_")
"""Instructions at a quarter of the rate."""

INTRODUCTION = """# The shaders on AMD GPUs

Every shipped module, compiled by RADV ({driver}) for devices that are not there, with the constants that vkllm uses
for a 7B model. No module may spill registers, and on RDNA those with integer dot products must use `v_dot4`:
`tests/shaders/test_amd.py` checks both, and that a Steam Deck computes faster than it reads. Written by
`python shaders/build.py --amd-report`; do not edit.

## A decode step on a Steam Deck

Llama 2 7B in Q4_0, one token; {gpu}.

Arithmetic is each vector instruction of a matvec, as often as the loops around it run, times the subgroups of the
dispatch and the cycles that it keeps a SIMD busy: two for a subgroup of 64, eight for the few at a quarter of the
rate. Scalar and memory instructions go to other units; other kernels are not counted, nor is any waiting: it is what
the step takes at least.

| kernel | rows | columns | dispatches | SIMD cycles a block of 32 weights | arithmetic, ms | memory, ms |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""

COLUMNS = """Of each module the specialisation with the most registers. Waves: subgroups that a SIMD holds at once.
Throughput: ACO's estimate of the cycles a subgroup costs a SIMD, with every loop run eight times.

| module | VGPRs | SGPRs | LDS, bytes | spilled | waves | code, bytes | v_dot4 | throughput |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


@dataclass(frozen=True)
class Gpu:
    """An RDNA GPU. simds: SIMDs of 32 lanes."""

    name: str
    simds: int
    hertz: float
    bytes_per_s: float


STEAM_DECK = Gpu("8 CUs of 2 SIMDs at 1.6 GHz, 88 GB/s", 16, 1.6e9, 88e9)


@dataclass(frozen=True)
class MatvecTime:
    """One dispatch of a decode step. cycles: of all SIMDs together."""

    kernel: str
    rows: int
    columns: int
    cycles: int
    arithmetic_s: float
    memory_s: float


def decode_times(result: FamilyResult, gpu: Gpu) -> list[MatvecTime]:
    """Every matvec of a step of one token of the Q4_0 model."""
    compiled = {(made.use.module, made.use.constants): made for made in result.compiled}
    fmt = weight_format("Q4_0")
    times = []
    for use in result.decode:
        if use.kernel in MATVECS:
            rows, columns = use.push[0], use.constant("columns")
            subgroups = use.groups[0] * use.constant("local_size") // result.subgroup_size
            cycles = subgroups * subgroup_cycles(compiled[use.module, use.constants], result.subgroup_size)
            memory_s = rows * columns // fmt.block * fmt.block_bytes / gpu.bytes_per_s
            times.append(MatvecTime(use.kernel, rows, columns, cycles, cycles / gpu.simds / gpu.hertz, memory_s))
    return times


def subgroup_cycles(made: Compiled, subgroup_size: int) -> int:
    """Cycles that one subgroup of a matvec keeps its SIMD busy with vector arithmetic."""
    lines = made.assembly.splitlines()
    runs = loop_runs(made.use, lines, subgroup_size)
    cycles = 0
    for number, line in enumerate(lines):
        if line.startswith("\tv_"):
            times = 4 if SLOW.match(line) else 1
            for (first, last), n in runs.items():
                times *= n if first <= number <= last else 1
            cycles += times * subgroup_size // 32
    return cycles


def loops(lines: list[str]) -> list[tuple[int, int]]:
    """First and last line of every loop in machine code: from a label to the last jump back to it."""
    labels: dict[str, int] = {}
    last_jump: dict[int, int] = {}
    for number, line in enumerate(lines):
        if line.endswith(":"):
            labels[line[:-1]] = number
        elif line.startswith(("\ts_branch ", "\ts_cbranch_")) and (target := line.split()[1]) in labels:
            last_jump[labels[target]] = number
    return sorted(last_jump.items())


def loop_runs(use: Use, lines: list[str], subgroup_size: int) -> dict[tuple[int, int], int]:
    """How often each loop of a matvec runs, each time that the loop around it does.

    Taken from what a loop does: one with integer dot products goes over the blocks of a row, a lane a block; one inside
    another combines eight lanes; every other one goes over the activations, four an invocation.
    """
    found = loops(lines)
    dots = {(first, last): sum("\tv_dot4" in line for line in lines[first:last]) for first, last in found}
    blocks, columns = use.constant("columns") // BLOCK, use.constant("columns")
    next_block = list(range(subgroup_size))  # of each lane
    runs = {}
    for loop in found:
        if any(outer[0] < loop[0] and loop[1] <= outer[1] for outer in found):
            runs[loop] = 3
        elif not dots[loop]:
            runs[loop] = -(-columns // 4 // use.constant("local_size"))
        else:
            at_once = dots[loop] // (DOTS_OF_BLOCK * use.constant("rows_per_subgroup"))
            step = at_once * subgroup_size
            is_last = not any(dots[other] for other in found if other[0] > loop[1])
            needed = 0 if is_last else step - subgroup_size  # only the last loop begins what is not all there
            lane_runs = [max(0, -(-(blocks - block - needed) // step)) for block in next_block]
            next_block = [block + step * n for block, n in zip(next_block, lane_runs, strict=True)]
            runs[loop] = max(lane_runs)
    return runs


def page(results: Iterable[FamilyResult]) -> str:
    """The whole report as Markdown. results: one of each family; the first must be vangogh, the Steam Deck's."""
    first, *others = results
    assert first.family == "vangogh"
    parts = [INTRODUCTION.format(driver=first.driver, gpu=STEAM_DECK.name), _decode_table(first)]
    for result in (first, *others):
        parts += [f"\n## {result.family}: {FAMILIES[result.family]}\n\n", COLUMNS, _family_table(result)]
        for reason in sorted(set(result.left_out.values())):
            modules = ", ".join(module for module in result.left_out if result.left_out[module] == reason)
            parts.append(f"\nNot compiled, because {reason}:\n{modules}\n")
    return "".join(parts)


def write() -> None:
    """Compiles all modules for all families and writes docs/amd.md."""
    PAGE.write_text(page(compile_family(family) for family in FAMILIES))


def _decode_table(result: FamilyResult) -> str:
    times = decode_times(result, STEAM_DECK)
    lines = []
    for one, n in Counter(times).items():
        cycles = one.cycles * BLOCK / (one.rows * one.columns)
        lines.append(
            f"| {one.kernel} | {one.rows} | {one.columns} | {n} | {cycles:.2f} | {1e3 * n * one.arithmetic_s:.2f} "
            f"| {1e3 * n * one.memory_s:.2f} |\n"
        )
    arithmetic_s, memory_s = sum(one.arithmetic_s for one in times), sum(one.memory_s for one in times)
    lines.append(f"| **all** | | | {len(times)} | | **{1e3 * arithmetic_s:.1f}** | **{1e3 * memory_s:.1f}** |\n")
    return "".join(lines)


def _family_table(result: FamilyResult) -> str:
    worst: dict[str, Compiled] = {}
    for made in result.compiled:
        before = worst.get(made.use.module)
        if before is None or made.statistics["VGPRs"] > before.statistics["VGPRs"]:
            worst[made.use.module] = made
    lines = []
    for module, made in worst.items():
        s = made.statistics
        # RADV counts a subgroup of 64 as two where SIMDs have 32 lanes
        waves = s["Subgroups per SIMD"] // (result.subgroup_size // 32 if result.family in RDNA else 1)
        spilled = s["Spilled VGPRs"] + s["Spilled SGPRs"]
        lines.append(
            f"| {module} | {s['VGPRs']} | {s['SGPRs']} | {s['LDS size']} | {spilled} | {waves} | {s['Code size']} "
            f"| {made.n_dot4} | {s['Inverse Throughput']} |\n"
        )
    return "".join(lines)
