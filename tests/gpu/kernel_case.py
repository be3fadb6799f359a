"""Small tools to run one kernel on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vkllm.formats.quants import split_planes
from vkllm.gpu.device import Buffer, Device
from vkllm.gpu.step import Row, StepSlots


def filled(device: Device, array: npt.NDArray[np.generic]) -> Buffer:
    """A host-visible buffer that holds the array's bytes, padded to 16."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    buffer = device.buffer(-(-len(raw) // 16) * 4, is_host=True)
    assert buffer.words is not None
    buffer.words.view(np.uint8)[: len(raw)] = raw
    return buffer


def poisoned(device: Device, n_words: int) -> Buffer:
    """A host-visible buffer full of NaN, so that what a kernel leaves out shows."""
    buffer = device.buffer(n_words, is_host=True)
    assert buffer.words is not None
    buffer.words[:] = 0x7FC00000
    return buffer


def floats(buffer: Buffer, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The first numbers of a host-visible buffer."""
    assert buffer.words is not None
    return buffer.words[: int(np.prod(shape))].view(np.float32).reshape(shape).copy()


def words(buffer: Buffer, shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
    assert buffer.words is not None
    return buffer.words[: int(np.prod(shape))].reshape(shape).copy()


def step_buffer(device: Device, positions: Sequence[int], tokens: Sequence[int], table: Sequence[int] = ()) -> Buffer:
    """A step with one row a position, as kernels see it (the layout of a slot is that of the step)."""
    slots = StepSlots(device, 1, max(len(table), 1))
    slots.write(0, [Row(token, position) for token, position in zip(tokens, positions, strict=True)], table)
    return slots.buffer


def planes(device: Device, raw: npt.NDArray[np.uint8], fmt: str) -> tuple[Buffer, Buffer]:
    quants, scales = split_planes(raw, fmt)
    first = filled(device, quants)
    return first, filled(device, scales) if len(scales) else first


def nmse(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.floating]) -> float:
    """Normalized mean square error; NaN counts as infinite."""
    error = float(np.mean(np.square(got.astype(np.float64) - wanted)) / max(np.mean(np.square(wanted)), 1e-30))
    return error if np.isfinite(error) else float("inf")
