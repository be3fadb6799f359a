"""The report on the shipped modules on AMD GPUs (docs/amd.md), and how long decoding computes on a Steam Deck.

Knows the report's words and a model of the arithmetic; `amd.py` compiles.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from amd import FAMILIES, RDNA, SHADERS, STEP_FAMILIES, Compiled, FamilyResult, compile_family
from paper import Use

from vkllm.formats.quants import BLOCK, weight_format

PAGE = SHADERS.parent / "docs" / "amd.md"

MATVEC = "matvec_fused"
"""The kernel that reads the weights; the others of a step do less than a hundredth of the arithmetic."""

ROWS_MATVEC = "matvec"
"""The kernel that multiplies several rows of activations, without matrices."""

ROUTER = "route_fused"
"""The kernel that reads the matrix of a router, in float32, and then chooses the experts."""

ROUTER_FOURS = 16
"""Fours of columns that a lane takes each time that the loop of ROUTER runs; AT_ONCE in shaders/route_fused.comp."""

DOTS_OF_BLOCK = BLOCK // 4 * 2
"""Integer dot products of a weight block with a q16 activation block."""

SLOW = re.compile(r"\tv_(exp|log|rcp|rsq|sqrt|sin|cos|mul_lo|mul_hi)_|\tv_\w+_[biu]64 ")
"""Instructions at a quarter of the rate, or perhaps at half."""

INTRODUCTION = """# The shaders on AMD GPUs

Every shipped module, compiled by RADV ({driver}) for devices that are not there, with the constants that vkllm uses
for a 7B model, for a step of Qwen3-30B-A3B in Q4_K, and in Q4_0 for layers of other families. No module may spill
registers, and on RDNA those with integer dot products must use `v_dot4`: `tests/shaders/test_amd.py` checks both, and
that a Steam Deck computes faster than it reads. Written by
`python shaders/build.py --amd-report`; do not edit.

## A decode step on a Steam Deck

Llama 2 7B in Q4_0, one token; {gpu}.

Arithmetic is each vector instruction of a matvec, as often as its subgroup comes to it, and the cycles that it keeps a
SIMD busy: two for a subgroup of 64, eight for the few at a quarter of the rate. A subgroup quantizes the activations
with its workgroup once, and the subgroups together take all rows; a row's blocks are a loop or, where the compiler has
unrolled it, straight code. Scalar and memory instructions go to other units; other kernels are not counted, nor is any
waiting: it is what the step takes at least.
"""

MIXTURE = """
### With experts: Qwen3-30B-A3B

Qwen3-30B-A3B in Q4_K, one token, which takes 8 of 128 experts in each of 48 layers. Rows and columns are those that are
read: gate and up of the chosen experts are one product of 12288 rows, down is one of 6144 columns. The products of 128
rows are the routers, in float32, up to where the last workgroup alone goes on to choose the experts, which is not
counted. A Steam Deck of 16 GB has no room for all of the model's 17 GB; its step is counted as if it had.
"""

EIGHT_ROWS = """
### Eight rows: Llama 3 8B

Llama 3 8B in Q4_K, a token of each of eight sequences. A subgroup multiplies two rows of a matrix by the eight rows of
activations, which the kernels before it have quantized: each weight is read once. This driver has no
cooperative matrices; with those, an RX 7900 multiplies by them.
"""

STEP_COLUMNS = """
| rows | columns | workgroups | dispatches | cycles a block | of them, for activations | arithmetic, ms | memory, ms |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""

COLUMNS = """Of each module the specialisation with the most registers. Waves: subgroups that a SIMD holds at once.
Throughput: ACO's estimate of the cycles a subgroup costs a SIMD, with every loop run eight times.

| module | VGPRs | SGPRs | LDS, bytes | spilled | waves | code, bytes | v_dot4 | throughput |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


Loop = tuple[int, int]
"""First and last line in machine code."""


@dataclass(frozen=True)
class Gpu:
    """An RDNA GPU. simds: SIMDs of 32 lanes."""

    name: str
    simds: int
    hertz: float
    bytes_per_s: float


STEAM_DECK = Gpu("8 CUs of 2 SIMDs at 1.6 GHz, 88 GB/s", 16, 1.6e9, 88e9)
RX_7900_XTX = Gpu("96 CUs of 2 SIMDs at 2.5 GHz, 960 GB/s", 192, 2.5e9, 960e9)
RADEON_780M = Gpu("12 CUs of 2 SIMDs at 2.7 GHz, 89.6 GB/s", 24, 2.7e9, 89.6e9)


@dataclass(frozen=True)
class MatvecTime:
    """One dispatch of a decode step. rows: of the weights. cycles: of all SIMDs together.

    prologue_cycles: of them, those before the first row.
    """

    rows: int
    columns: int
    groups: int
    cycles: int
    prologue_cycles: int
    arithmetic_s: float
    memory_s: float


def subgroups_at_once(result: FamilyResult, made: Compiled) -> int:
    """Subgroups that a SIMD holds at once."""
    # RADV counts a subgroup of 64 as two where SIMDs have 32 lanes
    return made.statistics["Subgroups per SIMD"] // (result.subgroup_size // 32 if result.family in RDNA else 1)


def step_times(result: FamilyResult, step: str, gpu: Gpu) -> list[MatvecTime]:
    """What reads weights in one of amd.STEPS. Raises ValueError as `row_loop` does."""
    compiled = {(made.use.module, made.use.constants): made.assembly for made in result.compiled}
    times = []
    for use in result.steps[step]:
        if use.kernel not in (MATVEC, ROWS_MATVEC, ROUTER):
            continue
        assembly, size, prologue = compiled[use.module, use.constants], result.subgroup_size, 0
        rows, columns = use.push[0], use.constant("columns")
        name = (
            "F32" if use.kernel == ROUTER else use.module.removeprefix(f"{use.kernel}_").removesuffix("_soft").upper()
        )
        fmt = weight_format(name)
        n_subgroups = use.groups[0] * use.constant("local_size") // size
        if use.kernel == ROUTER:
            rows = use.constant("n_experts")
            cycles = n_subgroups * router_cycles(use, assembly, size)
        elif use.kernel == ROWS_MATVEC:
            portions = -(-rows // use.constant("rows_per_subgroup")) * use.groups[1]
            cycles = portions * rows_matvec_cycles(use, assembly, size)
        else:
            once, portion = subgroup_cycles(use, assembly, size)
            prologue = once * n_subgroups
            # each portion of rows is some subgroup's, however many workgroups there are
            cycles = prologue + -(-rows // use.constant("rows_per_subgroup")) * portion
            rows, columns = rows * (1 + use.constant("gates")), use.constant("n_columns")
        memory_s = rows * columns // fmt.block * fmt.block_bytes / gpu.bytes_per_s
        arithmetic_s = cycles / gpu.simds / gpu.hertz
        times.append(MatvecTime(rows, columns, use.groups[0], cycles, prologue, arithmetic_s, memory_s))
    return times


def router_cycles(use: Use, assembly: str, subgroup_size: int) -> int:
    """Cycles of vector arithmetic of a router's subgroup, until its workgroup counts itself as ended.

    Raises ValueError for code in which none does, or in which other loops than one over the columns come before.
    """
    lines = assembly.splitlines()
    end = next((number for number, line in enumerate(lines) if "_atomic_add" in line), None)
    inner = [loop for loop in loops(lines) if end is None or loop[0] < end]
    if end is None or len(inner) > 1:
        raise ValueError(f"{use.module}: not one loop over the columns and then an atomic addition")
    runs = -(-use.constant("columns") // 4 // (ROUTER_FOURS * subgroup_size))
    return _all_cycles(lines[:end], inner, runs, subgroup_size)


def rows_matvec_cycles(use: Use, assembly: str, subgroup_size: int) -> int:
    """Cycles of vector arithmetic of a subgroup that multiplies its rows of a matrix by its rows of activations.

    Raises ValueError for code that is no loop over the blocks with just the integer dot products of one of each row.
    """
    lines = assembly.splitlines()
    found = loops(lines)
    wanted = DOTS_OF_BLOCK * use.constant("rows_per_subgroup") * use.constant("tokens_per_workgroup")
    dots = [sum("\tv_dot4" in line for line in part) for part in (lines, *(lines[a:b] for a, b in found))]
    if dots != [wanted, wanted]:
        raise ValueError(f"{use.module}: not one loop over the blocks with {wanted} integer dot products")
    runs = -(-use.constant("columns") // BLOCK // subgroup_size)
    return _all_cycles(lines, found, runs, subgroup_size)


def _all_cycles(lines: list[str], found: list[Loop], runs: int, subgroup_size: int) -> int:
    """Cycles of lines, those in loops as often as these run."""
    return sum(
        _cycles(line, subgroup_size) * (runs if any(first <= number <= last for first, last in found) else 1)
        for number, line in enumerate(lines)
    )


def subgroup_cycles(use: Use, assembly: str, subgroup_size: int) -> tuple[int, int]:
    """Cycles that a subgroup of a matvec keeps its SIMD busy with vector arithmetic: once, and for a portion of rows.

    Raises ValueError as `row_loop` does.
    """
    lines = assembly.splitlines()
    (first_of_rows, last_of_rows), runs = row_loop(use, lines, subgroup_size)
    cycles = [0, 0]
    for number, line in enumerate(lines):
        times = 1
        for (first, last), n in runs.items():
            times *= n if first <= number <= last else 1
        cycles[first_of_rows <= number <= last_of_rows] += times * _cycles(line, subgroup_size)
    return cycles[0], cycles[1]


def _cycles(line: str, subgroup_size: int) -> int:
    """Cycles that a line of machine code keeps an RDNA SIMD's vector unit busy."""
    return (4 if SLOW.match(line) else 1) * subgroup_size // 32 if line.startswith("\tv_") else 0


def loops(lines: list[str]) -> list[Loop]:
    """First and last line of every loop in machine code: from a label to the last jump back to it."""
    labels: dict[str, int] = {}
    last_jump: dict[int, int] = {}
    for number, line in enumerate(lines):
        if line.endswith(":"):
            labels[line[:-1]] = number
        elif line.startswith(("\ts_branch ", "\ts_cbranch_")) and (target := line.split()[1]) in labels:
            last_jump[labels[target]] = number
    return sorted(last_jump.items())


def row_loop(use: Use, lines: list[str], subgroup_size: int) -> tuple[Loop, dict[Loop, int]]:
    """The loop over the rows of a matvec, and how often every other loop runs each time that the one around it does.

    The loop over the rows has all integer dot products. One inside it goes over the blocks of a row, a lane a block or
    several; without it the row is straight code. What comes before goes over the activations, at most four an
    invocation at a time. Raises ValueError for code that is not so, or has not the dot products that a row needs.
    """
    found = loops(lines)
    dots = {loop: sum("\tv_dot4" in line for line in lines[loop[0] : loop[1]]) for loop in found}
    n_dots = sum("\tv_dot4" in line for line in lines)
    rows = next((loop for loop in found if dots[loop] == n_dots > 0), None)
    if rows is None:
        raise ValueError(f"{use.module}: no loop has all integer dot products")
    fours_of_invocation = -(-use.constant("n_columns") // 4 // use.constant("local_size"))
    runs = {loop: fours_of_invocation for loop in found if loop[1] < rows[0]}
    inner = [loop for loop in found if loop != rows and loop not in runs]
    if len(inner) > 1 or any(not dots[loop] or loop[1] > rows[1] for loop in inner):
        raise ValueError(f"{use.module}: the loop over the rows has other loops than one over the blocks")
    dots_of_lane = DOTS_OF_BLOCK * use.constant("rows_per_subgroup") * (1 + use.constant("gates"))
    needed = -(-use.constant("n_columns") // BLOCK // subgroup_size)  # blocks of a lane
    for loop in inner:
        runs[loop] = -(-needed * dots_of_lane // dots[loop])
    n_done = sum(dots[loop] * runs[loop] for loop in inner) if inner else n_dots
    if n_done < needed * dots_of_lane or (inner and n_dots != dots[inner[0]]):
        wanted = needed * dots_of_lane
        raise ValueError(f"{use.module}: {n_done} integer dot products for a portion of rows, not {wanted}")
    return rows, runs


def page(results: Iterable[FamilyResult], others_steps: Iterable[FamilyResult]) -> str:
    """The whole report as Markdown. results: one of each family; the first must be vangogh, the Steam Deck's.
    others_steps: one of each of STEP_FAMILIES, here the Radeon 780M's."""
    first, *others = results
    (radeon_780m,) = others_steps
    (gfx1100,) = (result for result in others if result.family == "gfx1100")
    assert first.family == "vangogh" and radeon_780m.family == "gfx1103_r1"
    parts = [INTRODUCTION.format(driver=first.driver, gpu=STEAM_DECK.name), _step_table(first, "7B", STEAM_DECK)]
    for text, step, others_cards in (
        (MIXTURE, "30B-A3B", ("Radeon 780M", radeon_780m, RADEON_780M)),
        (EIGHT_ROWS, "8 rows", ("RX 7900 XTX", gfx1100, RX_7900_XTX)),
    ):
        parts.append(text)
        for name, result, gpu in (("Steam Deck", first, STEAM_DECK), others_cards):
            parts += [f"\n{name} ({result.family}): {gpu.name}.\n", _step_table(result, step, gpu)]
    for result in (first, *others):
        parts += [f"\n## {result.family}: {FAMILIES[result.family].cards}\n\n", COLUMNS, _family_table(result)]
        for reason in sorted(set(result.left_out.values())):
            modules = ", ".join(module for module in result.left_out if result.left_out[module] == reason)
            parts.append(f"\nNot compiled, because {reason}:\n{modules}\n")
    return "".join(parts)


def write() -> None:
    """Compiles all modules for all families and writes docs/amd.md."""
    PAGE.write_text(page(map(compile_family, FAMILIES), map(compile_family, STEP_FAMILIES)))


def _step_table(result: FamilyResult, step: str, gpu: Gpu) -> str:
    times = step_times(result, step, gpu)
    lines = [STEP_COLUMNS]
    for one, n in Counter(times).items():
        cycles, prologue_cycles = (n * BLOCK / (one.rows * one.columns) for n in (one.cycles, one.prologue_cycles))
        lines.append(
            f"| {one.rows} | {one.columns} | {one.groups} | {n} | {cycles:.2f} | {prologue_cycles:.2f} "
            f"| {1e3 * n * one.arithmetic_s:.2f} | {1e3 * n * one.memory_s:.2f} |\n"
        )
    arithmetic_s, memory_s = sum(one.arithmetic_s for one in times), sum(one.memory_s for one in times)
    lines.append(f"| **all** | | | {len(times)} | | | **{1e3 * arithmetic_s:.1f}** | **{1e3 * memory_s:.1f}** |\n")
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
        waves, spilled = subgroups_at_once(result, made), s["Spilled VGPRs"] + s["Spilled SGPRs"]
        lines.append(
            f"| {module} | {s['VGPRs']} | {s['SGPRs']} | {s['LDS size']} | {spilled} | {waves} | {s['Code size']} "
            f"| {made.n_dot4} | {s['Inverse Throughput']} |\n"
        )
    return "".join(lines)
