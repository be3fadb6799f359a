"""How subgroups of matmul_narrow share a matrix, and how many of their loads are under way together.

Pure: knows the kernel's constants and what was measured.
"""

from __future__ import annotations

from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.program.fragments import MatrixLayout
from vkllm.gpu.program.kernels import MAX_NARROW

MOST_SUBGROUPS = 64
"""Of a product, for each core: more share the columns too finely. On an H200, a step of 32 rows of an 8B Q4_K takes
5.02 ms with a quarter of the columns of gate and up for each subgroup, and 5.24 with an eighth."""


def narrow_splits(info: DeviceInfo, layout: MatrixLayout, n_rows: int, gates: int = 0, table_words: int = 0) -> int:
    """Subgroups of matmul_narrow that share the columns of the same rows, in a workgroup. The order of sums follows, so
    all widths of steps must have the same.

    n_rows: of y. gates: 1 if there are as many rows again, for as many subgroups. table_words: of the weight format.
    """
    m, _, _ = layout.shape
    n_tiles = -(-n_rows // m) * (1 + gates)
    n_splits = 16 if info.n_cores else 8
    least = 4 if gates else 8
    while n_splits > least and info.n_cores and n_splits * n_tiles > MOST_SUBGROUPS * info.n_cores:
        n_splits //= 2
    piece = 0 if layout.is_direct else m * (2 * 32 * info.subgroup_size // m + 16)
    most_bytes = info.max_shared_bytes - 4 * table_words - 8 * MAX_NARROW
    most = min(most_bytes // max(piece, 4 * m * MAX_NARROW), info.max_workgroup_invocations // info.subgroup_size)
    while n_splits > 1 and n_splits * (1 + gates) > most:
        n_splits //= 2
    return n_splits


def narrow_steps_ahead(layout: MatrixLayout, n_splits: int, token_tiles: int) -> int:
    """Steps of the loop over columns whose weights are loaded together. On an H200, two where a subgroup has few steps,
    but one for two tiles of tokens: a step of an 8B Q4_K takes 3.43 ms instead of 3.66 for 16 rows, and 5.33 instead
    of 5.24 for 32."""
    return 2 if layout.is_direct and n_splits > 8 and token_tiles != 2 else 1
