"""The order in which lanes hold a matrix of weights, and that of activations that goes with it, without a device."""

import numpy as np
import pytest

from vkllm.gpu.program.fragments import MatrixLayout, held_elements

ORDER_OF_HALF = [4 * four + i for four in range(4) for i in (0, 2, 1, 3)]
"""Which value of half a block pairs_of_half (shaders/lib/pairs.glsl) has at each place."""


def held_on_nvidia() -> np.ndarray:
    """(32, n): elements of a matrix of rows as NVIDIA's driver 580.159.04 holds them on an H200: of rows lane / 4 and
    lane / 4 + 8 in turn, pairs of columns 2 * (lane % 4) and 8 more."""
    lane, i = np.ogrid[:32, :8]
    return (lane // 4 + 8 * (i // 4)) * 16 + 2 * (lane % 4) + 8 * (i // 2 % 2) + i % 2


def test_nvidia_holds_matrices_as_expected() -> None:
    held = held_on_nvidia()
    assert held[0].tolist() == [0, 1, 8, 9, 128, 129, 136, 137]
    assert held[4].tolist() == [16, 17, 24, 25, 144, 145, 152, 153]
    np.testing.assert_array_equal(held, held_elements(16, 16, 4, 32))


@pytest.mark.parametrize(
    ("shape", "lanes", "size"), [((16, 8, 16), 4, 32), ((16, 16, 16), 4, 32), ((8, 8, 8), 8, 8), ((16, 8, 8), 4, 32)]
)
def test_products_of_fragments(shape: tuple[int, int, int], lanes: int, size: int) -> None:
    """matmul_narrow's way in registers, lane for lane: each puts values of its own blocks into its elements."""
    (m, n, k), n_blocks = shape, 2 * lanes + 1
    rng = np.random.default_rng(0)
    weights, x = rng.integers(-8, 8, (m, 32 * n_blocks)), rng.integers(-8, 8, (n, 32 * n_blocks))
    quarters = MatrixLayout(shape, lanes, True).ordered(x.astype(np.float32)).reshape(-1, 4, n, lanes, 8)
    held, held_tokens, values = m * lanes // size, n * lanes // size, k // lanes
    place, token_place = held_elements(m, k, lanes, size), held_elements(n, k, lanes, size)
    sums = np.zeros((m, n))
    for group in range(-(-n_blocks // lanes)):
        for fragment in range(32 // values):
            matrix = np.full(m * k, np.nan)
            for lane in range(size):
                for i in range(held * values):
                    row, block = lane // lanes + i // values * (m // held), group * lanes + lane % lanes
                    half, order = divmod(fragment * values + i % values, 16)
                    column = 32 * block + 16 * half + ORDER_OF_HALF[order]
                    matrix[place[lane, i]] = weights[row, column] if block < n_blocks else 0
            tokens = np.full(n * k, np.nan)
            for lane in range(size):
                for i in range(held_tokens * values):
                    token, order = lane // lanes + i // values * (n // held_tokens), fragment * values + i % values
                    tokens[token_place[lane, i]] = quarters[group, order // 8, token, lane % lanes, order % 8]
            sums += matrix.reshape(m, k) @ tokens.reshape(n, k).T
    np.testing.assert_array_equal(sums, weights @ x.T)
