"""How matmul_narrow goes through a matrix: who takes which rows and columns, and what is loaded when.

Pure: knows the kernel's constants and what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from vkllm.formats.quants import weight_format
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.program.fragments import MatrixLayout
from vkllm.gpu.program.kernels import MAX_NARROW

NARROW_SUBGROUPS = 24
"""Subgroups of matmul_narrow for each core; more wait for others, and share the columns too finely."""


@dataclass(frozen=True)
class Product:
    """A product of matmul_narrow. n_rows: of y. gates: 1 if the matrix has as many rows again, which are multiplied by
    the first. width: rows of the step."""

    weight_format: str
    n_rows: int
    n_columns: int
    gates: int
    width: int


@dataclass(frozen=True)
class NarrowForm:
    """n_splits: subgroups of a workgroup, which share the columns of its rows. is_contiguous: whether the columns of a
    subgroup lie side by side. The order of sums follows from both, so all widths must have the same.

    row_tiles: matrices of rows of y that a workgroup takes together. groups_per_core: workgroups for each core, which
    take rows until none are left; 0: a workgroup takes rows once. steps_ahead: steps of the loop whose loads are under
    way together; has_early_loads: whether the next ones begin before the products of the last; x_ahead: whether
    activations are loaded as early. shares_x: whether matrices of activations are made once for all rows of a group.
    """

    n_splits: int
    row_tiles: int
    steps_ahead: int = 1
    x_ahead: bool = False
    groups_per_core: int = 0
    has_early_loads: bool = False
    shares_x: bool = False
    is_contiguous: bool = False

    def n_groups(self, n_rows: int, matrix_rows: int, n_cores: int | None) -> int:
        """Workgroups for the rows of y."""
        n_all = -(-n_rows // (self.row_tiles * matrix_rows))
        return min(n_all, self.groups_per_core * n_cores) if self.groups_per_core and n_cores else n_all


def form_of(product: Product, info: DeviceInfo, layout: MatrixLayout) -> NarrowForm:
    """The form of the table, for any device."""
    m, n, _ = layout.shape
    table_words = weight_format(product.weight_format).table_words
    n_splits = narrow_splits(info, layout, product.n_rows, product.gates, table_words)
    steps_ahead = 2 if layout.is_direct and n_splits > 8 else 1  # two in workgroups of few steps (H200)
    # activations as early as weights: of one tile, one step ahead, so that registers are left (on an H200 33.1 us
    # instead of 33.8 for gate and up of an 8B)
    x_ahead = layout.is_direct and product.width <= n and steps_ahead == 1
    row_tiles = narrow_row_tiles(product.n_rows, m, info.n_cores, product.width, product.gates)
    return NarrowForm(n_splits, row_tiles, steps_ahead, x_ahead)


def narrow_splits(info: DeviceInfo, layout: MatrixLayout, n_rows: int, gates: int = 0, table_words: int = 0) -> int:
    """Subgroups of a workgroup of matmul_narrow.

    n_rows: of y. gates: 1 if there are as many rows again. table_words: of the weight format.
    """
    m, _, _ = layout.shape
    piece = 0 if layout.is_direct else m * (2 * 32 * info.subgroup_size // m + 16)
    sums = (1 + gates) * 4 * m * MAX_NARROW
    n_groups = -(-n_rows // (m * narrow_row_tiles(n_rows, m, info.n_cores, MAX_NARROW)))
    n_splits = 16 if info.n_cores and 16 * n_groups <= NARROW_SUBGROUPS * info.n_cores else 8
    most_bytes = info.max_shared_bytes - 4 * table_words - 8 * MAX_NARROW
    while n_splits > 1 and (
        n_splits * max(piece, sums) > most_bytes or n_splits * info.subgroup_size > info.max_workgroup_invocations
    ):
        n_splits //= 2
    return n_splits


def narrow_row_tiles(n_rows: int, matrix_rows: int, n_cores: int | None, width: int, gates: int = 0) -> int:
    """Matrices of rows of y that a workgroup of matmul_narrow takes together.

    Two, which share activations, where there are enough of these to count; one where there would be too few workgroups.
    On an H200 one is faster for up to 8 tokens (8B Q4_K: 21 us instead of 24 for 4096 x 14336), and with gates, which
    take two matrices of weights each, for up to 16.
    """
    is_short = width <= (16 if gates else 8)
    return 2 if n_cores and n_rows // (2 * matrix_rows) >= n_cores // 2 and not is_short else 1
