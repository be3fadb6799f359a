"""How matmul_narrow multiplies on a device: shapes of its matrices, who holds their elements, the order of activations.

Pure but for `layout_of`, which asks the device (shaders/matrix_layout.comp).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, MAX_NARROW

DIRECT_LANES = 4
"""Blocks of a row that lie side by side where lanes hold the elements of matrices, as on NVIDIA's GPUs."""

FOUND_WORDS = 32
"""Words that matrix_layout writes for each lane."""


@dataclass(frozen=True)
class MatrixLayout:
    """shape: rows, tokens and columns that one instruction multiplies. lanes: blocks of a row that lie side by side.

    is_direct: whether lanes hold the elements of matrices as matmul_narrow expects; otherwise weights go through shared
    memory.
    """

    shape: tuple[int, int, int]
    lanes: int = 1
    is_direct: bool = False

    @property
    def packed(self) -> int:
        """The constant FRAGMENTS of shaders/lib/fragments.glsl."""
        _, n, k = self.shape
        return n | k << 8 | self.lanes << 16

    def ordered(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
        """x (T, columns) as float16 in the order of fragments; missing tokens and blocks are zeros."""
        _, n, k = self.shape
        tiles, groups = -(-len(x) // n), -(-x.shape[1] // (32 * self.lanes))
        padded = np.zeros((tiles * n, groups * self.lanes * 32), np.float16)
        padded[: len(x), : x.shape[1]] = x.astype(np.float16)
        # of each four values 0 and 2, then 1 and 3
        by_order = padded.reshape(*padded.shape[:1], -1, 2, 2).swapaxes(-1, -2)
        if self.lanes == 1:
            return np.ascontiguousarray(by_order.reshape(tiles, n, -1, k).swapaxes(1, 2)).reshape(-1)
        by_quarter = by_order.reshape(tiles, n, groups, self.lanes, 4, 8)
        return np.ascontiguousarray(by_quarter.transpose(0, 2, 4, 1, 3, 5)).reshape(-1)


def most_words(columns: int) -> int:
    """Most words of MAX_NARROW rows in the order of fragments, whatever the layout."""
    return MAX_NARROW * 16 * (columns // 32 + DIRECT_LANES)


def layout_of(device: Device) -> MatrixLayout:
    """The layout that matmul_narrow uses on a device with cooperative matrices. Raises DeviceError."""
    shape = device.info.narrow_shape or device.info.matrix_shape
    assert shape is not None
    is_direct = holds_directly(device, shape, DIRECT_LANES)
    return MatrixLayout(shape, DIRECT_LANES if is_direct else 1, is_direct)


def holds_directly(device: Device, shape: tuple[int, int, int], lanes: int) -> bool:
    """Whether lanes hold the elements of matrices as matmul_narrow expects. Raises DeviceError."""
    (m, n, k), size = shape, device.info.subgroup_size
    for of_tokens, n_rows in enumerate((m, n)):
        n_held = n_rows * lanes // size * (k // lanes)
        if not 0 < n_held <= FOUND_WORDS:
            return False
        source, found = device.buffer(n_rows * k // 2, is_host=True), device.buffer(FOUND_WORDS * size, is_host=True)
        assert source.words is not None and found.words is not None
        source.words[: n_rows * k // 2] = np.arange(n_rows * k).astype(np.float16).view(np.uint32)
        constants = (size, m, n, k, of_tokens)
        device.run([device.dispatch(KERNELS["matrix_layout"], (source, found), constants=constants)])
        wanted = np.full((size, FOUND_WORDS), 0xFFFFFFFF, np.uint32)
        wanted[:, :n_held] = held_elements(n_rows, k, lanes, size)
        if not np.array_equal(found.words[: wanted.size].reshape(wanted.shape), wanted):
            return False
    return True


def held_elements(m: int, k: int, lanes: int, size: int) -> npt.NDArray[np.uint32]:
    """Elements (row * k + column) of a matrix of weights (m, k) that lanes hold if matmul_narrow is direct, or of one
    of activations (k, m), whose rows are tokens: (size, n)."""
    held, values = m * lanes // size, k // lanes
    lane, i = np.ogrid[:size, : held * values]
    value = i % values
    column = lane % lanes * min(values, 2) + value % 2 + value // 2 * 2 * lanes
    elements: npt.NDArray[np.uint32] = ((lane // lanes + i // values * (m // held)) * k + column).astype(np.uint32)
    return elements
