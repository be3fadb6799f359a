"""Tiles of matmul and expert_matmul: rows, tokens and columns of a workgroup, and how subgroups share them."""

from __future__ import annotations

from vkllm.gpu.program.kernels import MAX_ROWS
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
