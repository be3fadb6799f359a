"""Tiles of matmul and expert_matmul: rows, tokens and columns of a workgroup, and how subgroups share them."""

from __future__ import annotations

from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.program.fragments import MatrixLayout
from vkllm.gpu.program.kernels import MAX_NARROW, MAX_ROWS
from vkllm.gpu.program.weights import WeightPlanes

MATMUL_SIZE = 256
"""Invocations of a workgroup of `matmul` in steps of up to NARROW_TOKENS, and of `expert_matmul`."""

WIDE_TILE = 128
"""Rows and tokens of a tile of `matmul` in steps of more than NARROW_TOKENS."""

NARROW_TOKENS = 64

PART_COLUMNS = 256
"""The columns of a part are a multiple of it: whole steps of every tile."""

MOST_PARTS = 32

MOST_PARTS_BYTES = 2**26
"""Bytes that the parts of a product may take."""

WORTH = 0.9
"""Parts must take less than this share of the time without."""

ALONE = 1.75
"""What a workgroup of 128 takes alone on a core, where two together take 2 (on an H200 31 ns a column, not 35)."""

PARTS_COLUMNS, ROWS_OF_A_COLUMN = 160, 18
"""What adding parts takes, in columns that a core multiplies meanwhile: for one more dispatch, and a column for so many
rows of each part (by the H200's 24 ns a column and 3 TB/s)."""


NARROW_SUBGROUPS = 24
"""Subgroups of matmul_narrow for each core; more wait for others, and share the columns too finely."""


def matmul_tile(narrow_rows: int, width: int, n_columns: int, max_shared_bytes: int) -> tuple[int, int]:
    """Rows and tokens of a workgroup of matmul in steps of `width` rows; a tile with fewer rows has more columns.

    narrow_rows: rows of a tile for few tokens, if the matrix has enough columns and the device enough shared memory.
    """
    if width > NARROW_TOKENS and matmul_bytes(WIDE_TILE, WIDE_TILE) <= max_shared_bytes:
        return WIDE_TILE, WIDE_TILE
    tokens = next(n for n in (16, 32, NARROW_TOKENS) if n >= min(width, NARROW_TOKENS))
    for rows in (32, 64):
        if rows >= narrow_rows and n_columns % _columns(rows) == 0 and matmul_bytes(rows, tokens) <= max_shared_bytes:
            return rows, tokens
    return WIDE_TILE, max(tokens, 32)  # each invocation has eight activations


def _columns(tile_rows: int) -> int:
    """Columns of a tile of matmul: each invocation takes 32 weights."""
    return 32 * MATMUL_SIZE // tile_rows


def matmul_bytes(tile_rows: int, tile_tokens: int) -> int:
    """Bytes of shared memory of a tile: rows of float16, each with 16 bytes of padding."""
    return (tile_rows + tile_tokens) * (2 * _columns(tile_rows) + 16)


def matmul_subgroups(
    tile_rows: int, tile_tokens: int, n_subgroups: int, matrix_shape: tuple[int, int, int]
) -> tuple[int, int]:
    """Subgroups of a workgroup of matmul along rows and along tokens."""
    along_rows = min(1 << n_subgroups.bit_length() // 2, tile_rows // matrix_shape[0])
    return along_rows, min(n_subgroups // along_rows, tile_tokens // matrix_shape[1])


def suits_matmul(planes: WeightPlanes) -> bool:
    """Whether a matrix divides into whole tiles of cooperative matrices."""
    return planes.n_columns % _columns(WIDE_TILE) == 0 and planes.n_rows % 16 == 0


FLOAT_SIZE = 256
"""Invocations of a workgroup of `matmul_float`."""


def suits_matmul_float(planes: WeightPlanes) -> bool:
    """Whether a matrix is of float32 and divides into whole tiles."""
    return planes.format == "F32" and planes.n_columns % 128 == 0


def float_tile(width: int) -> tuple[int, int]:
    """Rows and tokens of an invocation of matmul_float, whose workgroups have 4 and 8 times as many.

    In steps of few rows more workgroups share the matrix.
    """
    return (2, next(n for n in (1, 2, 4) if 8 * n >= width)) if width <= 32 else (4, 4)


def column_parts(n_rows: int, n_columns: int, n_cores: int | None, size: int) -> int:
    """Parts of the columns of a matrix that workgroups of their own multiply, so that all cores have work; 1: no parts.

    The number is chosen for the widest step and taken for all, because the order of the sums follows from it. size:
    invocations of a workgroup. A core runs one of 256 at a time, or two of 128 (on an H200 160 tiles of 256 take twice
    as long as 132).
    """
    n_tiles = -(-n_rows // WIDE_TILE) * (MAX_ROWS // WIDE_TILE)
    counts = [
        n
        for n in range(1, MOST_PARTS + 1)
        if n_columns % (n * PART_COLUMNS) == 0 and parts_bytes(n_rows, n) <= MOST_PARTS_BYTES
    ]

    def cost(n_parts: int) -> float:
        """Columns that the busiest core takes, and as many more as the time in which the parts are added."""
        assert n_cores is not None
        at_once = MATMUL_SIZE // size
        n_rounds, n_last = divmod(n_tiles * n_parts, at_once * n_cores)
        last = at_once if n_last > n_cores else (ALONE if at_once > 1 else 1.0) if n_last else 0.0
        sums = PARTS_COLUMNS + n_parts * n_rows / ROWS_OF_A_COLUMN if n_parts > 1 else 0.0
        return (n_rounds * at_once + last) * n_columns / n_parts + sums

    best = min(counts, key=cost, default=1) if n_cores else 1
    return best if best > 1 and cost(best) < WORTH * cost(1) else 1


def parts_bytes(n_rows: int, n_parts: int) -> int:
    """Bytes of the parts of a product, for the widest step."""
    return 4 * n_parts * MAX_ROWS * n_rows


def narrow_splits(info: DeviceInfo, layout: MatrixLayout, n_rows: int, gates: int = 0, table_words: int = 0) -> int:
    """Subgroups of a workgroup of matmul_narrow, which share the columns of its rows.

    The same for all numbers of tokens, because the order of sums follows from it. n_rows: of y. gates: 1 if there are
    as many rows again. table_words: of the weight format.
    """
    m, _, _ = layout.shape
    piece = 0 if layout.is_direct else m * (2 * 32 * info.subgroup_size // m + 16)
    sums = (1 + gates) * 4 * m * MAX_NARROW
    n_groups = -(-n_rows // (m * narrow_row_tiles(n_rows, m, info.n_cores, MAX_NARROW)))
    n_splits = 16 if info.n_cores and 16 * n_groups <= NARROW_SUBGROUPS * info.n_cores else 8
    most_bytes = info.max_shared_bytes - 4 * table_words
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


def narrow_steps_ahead(n_splits: int, *, is_direct: bool) -> int:
    """Steps of matmul_narrow's loop whose loads are under way together: two in workgroups of few steps (H200)."""
    return 2 if is_direct and n_splits > 8 else 1


def narrow_x_ahead(steps_ahead: int, token_tiles: int, *, is_direct: bool) -> bool:
    """Whether matmul_narrow loads activations as early as weights: of one tile, one step ahead, so that registers are
    left (on an H200 33.1 us instead of 33.8 for gate and up of an 8B)."""
    return is_direct and token_tiles == 1 and steps_ahead == 1
