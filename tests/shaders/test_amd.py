"""What Mesa's compiler makes of the shipped SPIR-V for AMD GPUs, none of which has to be there."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from vkllm.gpu.device.kernel import QUANTIZED_FORMATS
from vkllm.gpu.program.choices import AMD, GROUPS_PER_CORE
from vkllm.gpu.program.kernels import KERNELS

SHADERS = Path(__file__).parents[2] / "shaders"
sys.path.insert(0, str(SHADERS))

import amd  # noqa: E402
import amd_report  # noqa: E402

# For RDNA 2 the compiler writes the same code whatever the chip: see the test of their tables. For the two of GCN 5 it
# differs by a few instructions in 12 modules, so one of them runs by default.
RDNA_2 = ("vangogh", "rembrandt", "navi21")
SELDOM = (*RDNA_2[1:], "renoir")
FAMILIES = [pytest.param(name, marks=[pytest.mark.with_all] * (name in SELDOM)) for name in amd.FAMILIES]

compiled_for = cache(amd.compile_family)
needs_radv = pytest.mark.skipif(amd.icd() is None, reason="RADV is not installed (Debian: mesa-vulkan-drivers)")


@needs_radv
@pytest.mark.parametrize("family", FAMILIES)
def test_no_module_spills_and_dot_products_are_instructions(family: str) -> None:
    result = compiled_for(family)
    assert amd.violations(result) == []
    compiled = {made.use.module for made in result.compiled}
    assert compiled | set(result.left_out) == {m for kernel in KERNELS.values() for m in amd.modules(kernel)}
    assert set(result.left_out) <= {
        m for kernel in KERNELS.values() if kernel.uses_matrices for m in amd.modules(kernel)
    }


@needs_radv
@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_takes_the_soft_modules_where_dot_products_are_no_instructions(family: str) -> None:
    matvecs = [use.module for use in compiled_for(family).steps["7B"] if use.kernel == amd_report.MATVEC]
    assert matvecs and all(module.endswith("_soft") == (family not in amd.RDNA) for module in matvecs)


@needs_radv
@pytest.mark.parametrize("family", FAMILIES)
def test_a_core_has_room_for_the_workgroups_of_matvec_that_the_table_gives_it(family: str) -> None:
    result = compiled_for(family)
    simds = 2 if family in amd.RDNA else 4
    matvecs = [
        made
        for made in result.compiled
        if made.use.kernel == amd_report.MATVEC and made.use.module.endswith("_soft") == (family not in amd.RDNA)
        # with 14336 columns, all unrolled, an RX 7900 has registers for three on two cores
        if made.use.constant("n_columns") <= amd.MODEL.d_ff
        # in float32, these take 72 registers and more, so a core of GCN has room for one and a half
        if made.use.module not in ("matvec_fused_q5_k_soft", "matvec_fused_tq1_0_soft")
    ]
    modules = {made.use.module.removesuffix("_soft") for made in matvecs}
    formats = [fmt for fmt in QUANTIZED_FORMATS if family in amd.RDNA or fmt not in ("Q5_K", "TQ1_0")]
    assert modules == {f"matvec_fused_{fmt.lower()}" for fmt in formats}
    for made in matvecs:
        subgroups = GROUPS_PER_CORE[AMD] * made.use.constant("local_size") // result.subgroup_size
        assert subgroups <= simds * amd_report.subgroups_at_once(result, made), made.use


@needs_radv
def test_matmul_for_gfx1100() -> None:
    result = compiled_for("gfx1100")
    if result.left_out:
        pytest.skip("; ".join(sorted(set(result.left_out.values()))))
    assert {made.use.module for made in result.compiled} >= set(KERNELS["matmul"].modules())


@needs_radv
def test_a_steam_deck_computes_a_decode_step_faster_than_it_reads_the_weights() -> None:
    times = amd_report.step_times(compiled_for("vangogh"), "7B", amd_report.STEAM_DECK)
    # 6.6e9 weights of 4.5 bits at 88 GB/s
    assert sum(one.memory_s for one in times) == pytest.approx(6.607e9 * 4.5 / 8 / 88e9, rel=1e-3)
    assert sum(one.arithmetic_s for one in times) < sum(one.memory_s for one in times)
    # 16 dot products a block, two cycles for 64 lanes, cannot be beaten
    least = sum(one.rows * one.columns for one in times) / 32 / 64 * 16 * 2 / 16 / 1.6e9
    assert sum(one.arithmetic_s for one in times) > least
    # no workgroup quantizes the activations that does not run from the beginning
    assert {one.groups for one in times} == {GROUPS_PER_CORE[AMD] * 8}


@needs_radv
@pytest.mark.parametrize(("family", "gpu"), [("vangogh", "STEAM_DECK"), ("gfx1103_r1", "RADEON_780M")])
def test_a_step_of_qwen3_30b_a3b_reads_the_chosen_experts_and_computes_in_less_time(family: str, gpu: str) -> None:
    result, device = compiled_for(family), getattr(amd_report, gpu)
    assert amd.violations(result) == []
    times = amd_report.step_times(result, "30B-A3B", device)
    # queries, keys and values of 32 + 2 * 4 heads; output; router; gate and up, and down, of 8 experts of width 768
    layer = [(40 * 128, 2048), (2048, 32 * 128), (128, 2048), (2 * 8 * 768, 2048), (2048, 8 * 768)]
    assert [(one.rows, one.columns) for one in times] == layer * 48 + [(151936, 2048)]
    # a router in float32, all else in 4.5 bits
    n_weights = 48 * (5120 + 4096 + 3 * 8 * 768) * 2048 + 151936 * 2048
    memory_s = (n_weights * 4.5 / 8 + 48 * 128 * 2048 * 4) / device.bytes_per_s
    assert sum(one.memory_s for one in times) == pytest.approx(memory_s)
    arithmetic_s = sum(one.arithmetic_s for one in times)
    assert n_weights / 32 / 64 * 16 * 2 / device.simds / device.hertz < arithmetic_s < memory_s
    assert reading_on_the_page("With experts", family) == f"**{1e3 * memory_s:.1f}**"


@needs_radv
@pytest.mark.parametrize(("family", "gpu"), [("vangogh", "STEAM_DECK"), ("gfx1100", "RX_7900_XTX")])
def test_a_step_of_eight_rows_reads_each_weight_once(family: str, gpu: str) -> None:
    result, device = compiled_for(family), getattr(amd_report, gpu)
    if family == "gfx1100" and not result.left_out:
        pytest.skip("this driver has cooperative matrices")
    times = amd_report.step_times(result, "8 rows", device)
    layer = [(6144, 4096), (4096, 4096), (2 * 14336, 4096), (4096, 14336)]
    assert [(one.rows, one.columns) for one in times] == layer * 32 + [(128256, 4096)]
    n_weights = (32 * (6144 + 4096 + 3 * 14336) + 128256) * 4096
    memory_s = n_weights * 4.5 / 8 / device.bytes_per_s
    assert sum(one.memory_s for one in times) == pytest.approx(memory_s)
    # 16 dot products a block and row, and less than twice as many others
    least_s = n_weights / 32 / 64 * 16 * 8 * 2 / device.simds / device.hertz
    assert least_s < sum(one.arithmetic_s for one in times) < 3 * least_s
    assert reading_on_the_page("Eight rows", family) == f"**{1e3 * memory_s:.1f}**"


def reading_on_the_page(step: str, family: str) -> str:
    """The milliseconds in all that the page tells for a step."""
    section = amd_report.PAGE.read_text().split(f"### {step}")[1].split(f"({family}): ")[1]
    return section.split("| **all** |")[1].splitlines()[0].split("|")[-2].strip()


def test_a_matvec_of_several_rows_is_a_loop_over_the_blocks() -> None:
    several = amd.Use("matvec", "matvec_q4_k", (64, 14336, 2, 8, 0, 0, 0), (3, 2, 1), (100, 0, 0))
    code = f"BB0:\n\tv_rcp_f32_e32 v1, v2\nBB1:\n{DOT * 256}\ts_cbranch_scc0 BB1\n\tv_add_f32_e32 v1, v1, v2\n"
    assert amd_report.rows_matvec_cycles(several, code, 64) == 2 * (4 + 7 * 256 + 1)
    made = amd.Compiled(several, CLEAN, code)
    result = amd.FamilyResult("vangogh", "Mesa", 64, (made,), {"8 rows": (several,)}, {})
    (time,) = amd_report.step_times(result, "8 rows", DECK)
    # 50 portions of two rows, and 16 rows of activations in two tiles
    assert (time.rows, time.columns, time.cycles) == (100, 14336, 50 * 2 * 3594)
    assert time.memory_s == 100 * 14336 // 256 * 144 / 1e9
    for broken in (code.replace(DOT, "", 1), code.replace("BB1:\n", f"{DOT}BB1:\n")):
        with pytest.raises(ValueError, match="256 integer dot products"):
            amd_report.rows_matvec_cycles(several, broken, 64)


def test_of_a_router_all_subgroups_run_what_comes_before_the_choice() -> None:
    constants = (128, 128, 8, 0, 0, 1, 1, 0, 1, 0, 0, 5120, 1, 0, 0, 0, 0)
    router = amd.Use("route_fused", "route_fused", constants, (64, 1), (0, 0, 0))
    code = (
        "BB0:\n\tv_mov_b32_e32 v1, 0\nBB1:\n\tv_rcp_f32_e32 v1, v2\n\ts_cbranch_scc0 BB1\n\tglobal_atomic_add v0, v1\n"
        "BB2:\n\tv_mov_b32_e32 v1, 0\n\ts_cbranch_scc0 BB2\n"
    )
    # 1280 fours are two rounds of 16 fours for each of 64 lanes
    assert amd_report.router_cycles(router, code, 64) == 2 * (1 + 2 * 4)
    made = amd.Compiled(router, CLEAN, code)
    result = amd.FamilyResult("vangogh", "Mesa", 64, (made,), {"30B-A3B": (router,)}, {})
    (time,) = amd_report.step_times(result, "30B-A3B", DECK)
    assert (time.rows, time.columns, time.cycles) == (128, 5120, 64 * 2 * 18)
    assert time.memory_s == 128 * 5120 * 4 / 1e9
    for broken in (code.replace("_atomic_add", ""), code.replace("BB0:\n", "BB0:\n\ts_cbranch_scc0 BB0\n")):
        with pytest.raises(ValueError, match="route_fused"):
            amd_report.router_cycles(router, broken, 64)


def tables_of_the_page() -> dict[str, list[str]]:
    """By family the rows of its table, one for each module."""
    tables = amd_report.PAGE.read_text().split("\n## ")[2:]
    return {table.split(":")[0]: [line for line in table.splitlines() if line.startswith("| ")][2:] for table in tables}


@needs_radv
@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_names_what_is_shipped(family: str) -> None:
    shipped = {made.use.module for made in compiled_for(family).compiled}
    assert [line.split()[1] for line in tables_of_the_page()[family]] == sorted(shipped)


def test_the_page_has_all_families_and_one_of_rdna_2_stands_for_the_others() -> None:
    tables = tables_of_the_page()
    assert list(tables) == list(amd.FAMILIES)
    assert tables[RDNA_2[0]]
    assert all(tables[family] == tables[RDNA_2[0]] for family in RDNA_2)  # registers, memory and length of every module


DOT = "\tv_dot4_i32_i8 v1, v2, v3, 0\n"
MACHINE_CODE = f"""BB0:
\tv_mov_b32_e32 v1, 0
BB1:
\tv_rcp_f32_e32 v1, v2
\ts_cbranch_scc0 BB1
\tv_add_f32_e32 v1, v1, v2
BB2:
\tv_mov_b32_e32 v1, 0
\ts_cbranch_scc1 BB5
BB3:
{DOT * 32}\ts_cbranch_scc0 BB3
\tv_lshrrev_b64 v[4:5], 0, v[6:7]
\ts_branch BB2
BB5:
\ts_endpgm
"""


def use(n_columns: int = 4096, rows: int = 2, gates: int = 0) -> amd.Use:
    """matvec_fused with 3 workgroups of 64 for 100 rows of y."""
    constants = (64, n_columns, 0, n_columns, rows, 1, 0, gates, 0, 0, 0, 0)
    return amd.Use("matvec_fused", "matvec_fused_q4_0", constants, (3, 1), (100, 0, 0, 0))


USE = use()
CLEAN = dict.fromkeys(("Spilled VGPRs", "Spilled SGPRs", "Scratch size"), 0)


def test_loops_are_found_and_counted() -> None:
    lines = MACHINE_CODE.splitlines()
    activations, rows, blocks = amd_report.loops(lines)
    assert [lines[loop[0]] for loop in (activations, rows, blocks)] == ["BB1:", "BB2:", "BB3:"]
    # 1024 fours of activations for 64 lanes; 128 blocks of a row, two for each of 64 lanes
    assert amd_report.row_loop(USE, lines, 64) == (rows, {activations: 16, blocks: 2})
    # the last of 344 blocks is the sixth of its lane; two lines of the code's are four of the matrix's with gates
    assert amd_report.row_loop(use(11008), lines, 64)[1][blocks] == 6
    assert amd_report.row_loop(use(rows=1, gates=1), lines, 64)[1][blocks] == 2
    assert amd_report.row_loop(use(rows=4), lines, 64)[1][blocks] == 4


def test_the_prologue_is_a_subgroups_and_the_rest_a_portion_of_rows() -> None:
    # two cycles an instruction, eight a slow one: 16 reciprocals; twice 32 dot products
    prologue, portion = 2 * (1 + 16 * 4 + 1), 2 * (1 + 2 * 32 + 4)
    assert amd_report.subgroup_cycles(USE, MACHINE_CODE, 64) == (prologue, portion)
    made = amd.Compiled(USE, CLEAN, MACHINE_CODE)
    (time,) = amd_report.step_times(amd.FamilyResult("vangogh", "Mesa", 64, (made,), {"7B": (USE,)}, {}), "7B", DECK)
    assert (time.cycles, time.prologue_cycles) == (3 * prologue + 50 * portion, 3 * prologue)
    assert (time.rows, time.arithmetic_s) == (100, time.cycles / 16e9)
    assert time.memory_s == 100 * 128 * 18 / 1e9


DECK = amd_report.Gpu("a GPU of round numbers", 16, 1e9, 1e9)


def test_a_row_may_be_straight_code() -> None:
    lines = MACHINE_CODE.replace("\ts_cbranch_scc0 BB3\n", DOT * 32).splitlines()
    _, rows = amd_report.loops(lines)
    assert amd_report.row_loop(USE, lines, 64)[0] == rows
    with pytest.raises(ValueError, match="64 integer dot products for a portion of rows, not 192"):
        amd_report.row_loop(use(11008), lines, 64)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (DOT, ""),
        ("\ts_branch BB2\n", ""),  # the dot products' only loop is that over the blocks, which takes no other rows
        ("BB3:\n", f"{DOT}BB3:\n"),
        ("BB3:\n", "BB3:\nBB4:\n\ts_cbranch_scc0 BB4\n"),
        ("BB5:\n", "BB5:\n\ts_cbranch_scc0 BB5\n"),
    ],
    ids=["no dot products", "no loop over rows", "dot products outside the blocks", "a loop inside", "a loop behind"],
)
def test_code_that_is_not_understood_is_refused(old: str, new: str) -> None:
    assert old in MACHINE_CODE
    with pytest.raises(ValueError, match="matvec_fused_q4_0"):
        amd_report.row_loop(USE, MACHINE_CODE.replace(old, new).splitlines(), 64)


def test_spills_and_missing_dot_products_are_told() -> None:
    spills = amd.Compiled(USE, CLEAN | {"Spilled VGPRs": 3, "Scratch size": 1024}, MACHINE_CODE)
    lowered = amd.Compiled(USE, CLEAN, MACHINE_CODE.replace("v_dot4", "v_mul"))
    soft = amd.Compiled(replace(USE, module="matvec_fused_q4_0_soft"), CLEAN, lowered.assembly)
    result = amd.FamilyResult("vangogh", "Mesa", 64, (spills, lowered, soft), {}, {})
    told = amd.violations(result)
    assert len(told) == 3 and "Spilled VGPRs 3" in told[0] and "Scratch size" in told[1]
    assert told[2].endswith("0 integer dot products") and "_soft" not in told[2]
    assert amd.violations(replace(result, family="vega10", compiled=(lowered, soft))) == []
