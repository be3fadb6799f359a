"""How subgroups of matmul_narrow share matrices on different devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tunings import H100, RADEON

from vkllm.gpu.program.fragments import MatrixLayout
from vkllm.gpu.program.narrow_forms import narrow_splits, narrow_steps_ahead

DIRECT = MatrixLayout((16, 8, 16), 4, is_direct=True)
THROUGH_MEMORY = MatrixLayout((16, 16, 16))


@pytest.mark.parametrize(("n_rows", "gates", "n"), [(4096, 0, 16), (6144, 0, 16), (14336, 1, 4), (128256, 0, 8)])
def test_large_matrices_are_shared_by_fewer_subgroups(n_rows: int, gates: int, n: int) -> None:
    """The matrices of an 8B, for the 132 cores of an H100."""
    assert narrow_splits(replace(H100, n_cores=132), DIRECT, n_rows, gates) == n


def test_a_device_whose_cores_are_unknown_has_eight() -> None:
    assert narrow_splits(replace(H100, n_cores=None), DIRECT, 4096) == 8


def test_workgroups_fit_the_device() -> None:
    few = replace(H100, n_cores=132, max_workgroup_invocations=256)
    assert [narrow_splits(few, DIRECT, 4096, gates) for gates in (0, 1)] == [8, 4]
    small = replace(RADEON, max_shared_bytes=32768)
    table_words = 1024
    for gates in (0, 1):
        n = narrow_splits(small, THROUGH_MEMORY, 4096, gates, table_words) * (1 + gates)
        weights, sums = 16 * (4 * small.subgroup_size + 16), 4 * 16 * 32
        assert n >= 1 and n * max(weights, sums) + 4 * table_words <= small.max_shared_bytes


def test_loads_ahead_follow_the_steps_of_a_subgroup() -> None:
    assert [narrow_steps_ahead(DIRECT, 16, tiles) for tiles in (1, 2, 4)] == [2, 1, 2]
    assert narrow_steps_ahead(DIRECT, 8, 1) == narrow_steps_ahead(THROUGH_MEMORY, 16, 1) == 1
