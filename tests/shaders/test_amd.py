"""What Mesa's compiler makes of the shipped SPIR-V for AMD GPUs, none of which has to be there."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from vkllm.gpu.kernels import KERNELS

SHADERS = Path(__file__).parents[2] / "shaders"
sys.path.insert(0, str(SHADERS))

import amd  # noqa: E402
import amd_report  # noqa: E402

compiled_for = cache(amd.compile_family)
needs_radv = pytest.mark.skipif(amd.icd() is None, reason="RADV is not installed (Debian: mesa-vulkan-drivers)")


@needs_radv
@pytest.mark.parametrize("family", amd.FAMILIES)
def test_no_module_spills_and_dot_products_are_instructions(family: str) -> None:
    result = compiled_for(family)
    assert amd.violations(result) == []
    compiled = {made.use.module for made in result.compiled}
    assert compiled | set(result.left_out) == {m for kernel in KERNELS.values() for m in kernel.modules()}
    assert set(result.left_out) <= set(KERNELS["matmul"].modules())


@needs_radv
@pytest.mark.parametrize("family", amd.FAMILIES)
def test_a_program_takes_the_soft_modules_where_dot_products_are_no_instructions(family: str) -> None:
    matvecs = [use.module for use in compiled_for(family).decode if use.kernel in amd_report.MATVECS]
    assert matvecs and all(module.endswith("_soft") == (family not in amd.RDNA) for module in matvecs)


@needs_radv
def test_matmul_for_gfx1100() -> None:
    result = compiled_for("gfx1100")
    if result.left_out:
        pytest.skip("; ".join(sorted(set(result.left_out.values()))))
    assert {made.use.module for made in result.compiled} >= set(KERNELS["matmul"].modules())


@needs_radv
def test_a_steam_deck_computes_a_decode_step_faster_than_it_reads_the_weights() -> None:
    times = amd_report.decode_times(compiled_for("vangogh"), amd_report.STEAM_DECK)
    # 6.6e9 weights of 4.5 bits at 88 GB/s
    assert sum(one.memory_s for one in times) == pytest.approx(6.607e9 * 4.5 / 8 / 88e9, rel=1e-3)
    assert sum(one.arithmetic_s for one in times) < sum(one.memory_s for one in times)
    # 16 dot products a block, two cycles for 64 lanes, cannot be beaten
    least = sum(one.rows * one.columns for one in times) / 32 / 64 * 16 * 2 / 16 / 1.6e9
    assert sum(one.arithmetic_s for one in times) > least


@needs_radv
def test_the_page_names_what_is_shipped() -> None:
    tables = amd_report.PAGE.read_text().split("\n## ")[2:]
    assert [table.split(":")[0] for table in tables] == list(amd.FAMILIES)
    for table in tables:
        result = compiled_for(table.split(":")[0])
        shipped = [made.use.module for made in result.compiled]
        assert [line.split()[1] for line in table.splitlines() if line.startswith("| ")][2:] == sorted(set(shipped))


MACHINE_CODE = """BB0:
\tv_mov_b32_e32 v1, 0
BB1:
\tv_rcp_f32_e32 v1, v2
BB2:
\tv_add_f32_e32 v1, v1, v2
\ts_cbranch_scc0 BB2
\ts_cbranch_scc1 BB4
\ts_branch BB1
BB4:
\tv_dot4_i32_i8 v1, v2, v3, 0
\tv_dot4c_i32_i8_e32 v1, v2, v3
\ts_branch BB4
BB5:
\ts_endpgm
"""

# matvec_fused with workgroups of 64, 4096 columns, a row a subgroup
USE = amd.Use("matvec_fused", "matvec_fused_q4_0", (64, 4096, 1, 2, 0, 0, 0))
CLEAN = dict.fromkeys(("Spilled VGPRs", "Spilled SGPRs", "Scratch size"), 0)


def test_loops_are_found_and_counted() -> None:
    dot = "\tv_dot4_i32_i8 v1, v2, v3, 0\n"
    code = MACHINE_CODE.replace(dot, dot * 31)  # two blocks at once
    lines = code.splitlines()
    outer, inner, dots = amd_report.loops(lines)
    assert (lines[outer[0]], lines[inner[0]], lines[dots[0]]) == ("BB1:", "BB2:", "BB4:")
    # 1024 fours of activations for 64 lanes; eight lanes in three steps; 128 blocks, two for each of 64 lanes
    assert amd_report.loop_runs(USE, lines, 64) == {outer: 16, inner: 3, dots: 1}
    # two cycles each: a move, 16 slow reciprocals, 16 * 3 sums, 32 dot products
    cycles = amd_report.subgroup_cycles(amd.Compiled(USE, CLEAN, code), 64)
    assert cycles == 2 * (1 + 16 * 4 + 16 * 3 + 32)


def test_a_row_of_ragged_length_takes_a_last_run() -> None:
    dot = "\tv_dot4_i32_i8 v1, v2, v3, 0\n"
    whole = f"BB0:\n{dot * 32}\ts_branch BB0\n"
    rest = f"BB1:\n{dot * 16}\ts_branch BB1\n"
    use = replace(USE, constants=(64, 11008, 1, 2, 0, 0, 0))
    # 344 blocks: lanes below 24 take three times two, the others twice two and one
    assert list(amd_report.loop_runs(use, (whole + rest).splitlines(), 64).values()) == [3, 1]


def test_spills_and_missing_dot_products_are_told() -> None:
    spills = amd.Compiled(USE, CLEAN | {"Spilled VGPRs": 3, "Scratch size": 1024}, MACHINE_CODE)
    lowered = amd.Compiled(USE, CLEAN, MACHINE_CODE.replace("v_dot4", "v_mul"))
    soft = amd.Compiled(replace(USE, module="matvec_fused_q4_0_soft"), CLEAN, lowered.assembly)
    result = amd.FamilyResult("vangogh", "Mesa", 64, (spills, lowered, soft), (), {})
    told = amd.violations(result)
    assert len(told) == 3 and "Spilled VGPRs 3" in told[0] and "Scratch size" in told[1]
    assert told[2].endswith("0 integer dot products") and "_soft" not in told[2]
    assert amd.violations(replace(result, family="vega10", compiled=(lowered, soft))) == []
