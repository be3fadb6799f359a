"""Tiles of matmul and expert_matmul: rows, tokens and columns of a workgroup, and how subgroups share them."""

from __future__ import annotations

from vkllm.gpu.program.weights import WeightPlanes

MATMUL_SIZE = 256
"""Invocations of a workgroup of `matmul`."""

WIDE_TILE = 128
"""Rows and tokens of a tile of `matmul` in steps of more than NARROW_TOKENS."""

NARROW_TOKENS = 64


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
    tile_rows: int, tile_tokens: int, subgroup_size: int, matrix_shape: tuple[int, int, int]
) -> tuple[int, int]:
    """Subgroups of a workgroup of matmul along rows and along tokens."""
    n_subgroups = MATMUL_SIZE // subgroup_size
    along_rows = min(1 << n_subgroups.bit_length() // 2, tile_rows // matrix_shape[0])
    return along_rows, min(n_subgroups // along_rows, tile_tokens // matrix_shape[1])


def suits_matmul(planes: WeightPlanes) -> bool:
    """Whether a matrix divides into whole tiles of cooperative matrices."""
    return planes.n_columns % _columns(WIDE_TILE) == 0 and planes.n_rows % 16 == 0
