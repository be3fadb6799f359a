"""Weights on the GPU: raw GGUF bytes go through host-visible staging and are split into planes there.

Two staging buffers alternate: while the GPU splits one chunk, the CPU copies the next from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vkllm.formats.quants import Format, weight_format
from vkllm.gpu.device import Buffer, Device, Dispatch
from vkllm.gpu.kernels import KERNELS

STAGING_WORDS = 4 * 1024 * 1024
LOCAL_SIZE = 64
GROUPS = 1024


@dataclass(frozen=True)
class WeightPlanes:
    """A matrix (n_rows, n_columns) on the GPU. scales is quants itself where the format has no scales."""

    quants: Buffer
    scales: Buffer
    format: str
    n_rows: int
    n_columns: int


@dataclass(frozen=True)
class Tensor:
    """A tensor to upload: its raw bytes, format and shape (rows, columns)."""

    raw: npt.NDArray[np.uint8]
    format: str
    shape: tuple[int, int]

    def rows(self, first: int, n: int) -> Tensor:
        """Some of its rows, as a view. They must begin and end at a block of the format."""
        fmt, columns = weight_format(self.format), self.shape[1]
        assert first * columns % fmt.block == 0 and n * columns % fmt.block == 0
        row_bytes = fmt.block_bytes * columns // fmt.block
        return Tensor(self.raw[first * row_bytes : (first + n) * row_bytes], self.format, (n, columns))


class Uploader:
    """Fills buffers. on_bytes is called with the bytes copied since the last call."""

    def __init__(self, device: Device, on_bytes: Callable[[int], None] = lambda n_bytes: None) -> None:
        self._device = device
        self._on_bytes = on_bytes
        self._staging = [device.buffer(STAGING_WORDS, is_host=True) for _ in range(2)]
        self._in_flight: list[list[object]] = [[], []]
        self._tickets = [0, 0]
        self._turn = 0

    def matrix(self, tensors: Sequence[Tensor], allocate: Callable[[int], Buffer]) -> WeightPlanes:
        """Uploads tensors of one format and width as one matrix, one above the other, into buffers of so many words."""
        fmt = weight_format(tensors[0].format)
        n_columns = tensors[0].shape[1]
        assert all(t.format == fmt.name and t.shape[1] == n_columns for t in tensors)
        n_rows = sum(t.shape[0] for t in tensors)
        quant_words, scale_words = fmt.plane_words(n_rows * n_columns)
        quants = allocate(quant_words)
        scales = allocate(scale_words) if fmt.is_quantized else quants
        first_value = 0
        for tensor in tensors:
            assert first_value % fmt.unit == 0
            self._split(tensor.raw, fmt, quants, scales, first_value // fmt.unit)
            first_value += tensor.shape[0] * n_columns
        return WeightPlanes(quants, scales, fmt.name, n_rows, n_columns)

    def words(self, words: npt.NDArray[np.generic], target: Buffer) -> None:
        """Copies an array of 4-byte numbers to the beginning of a buffer."""
        raw = np.ascontiguousarray(words).reshape(-1).view(np.uint8)
        for start, n_bytes, staging in self._chunks(raw, 4):
            self._run(staging, self._copy(staging, target, n_bytes // 4, start // 4))

    def finish(self) -> None:
        """Waits until all is on the device and frees the staging buffers."""
        for ticket in self._tickets:
            self._device.wait(ticket)
        self._staging.clear()
        self._in_flight.clear()

    def _split(self, raw: npt.NDArray[np.uint8], fmt: Format, quants: Buffer, scales: Buffer, first_unit: int) -> None:
        for start, n_bytes, staging in self._chunks(raw, fmt.unit_bytes):
            chunk_unit = first_unit + start // fmt.unit_bytes
            if not fmt.is_quantized:
                self._run(staging, self._copy(staging, quants, n_bytes // 4, chunk_unit * fmt.quant_words))
                continue
            n_units = -(-n_bytes // fmt.unit_bytes)
            self._run(
                staging,
                self._device.dispatch(
                    KERNELS["split_planes"],
                    (self._staging[staging], quants, scales),
                    constants=(LOCAL_SIZE,),
                    groups=(min(GROUPS, -(-n_units // LOCAL_SIZE)), 1),
                    push=(n_units, chunk_unit),
                    weight_format=fmt.name,
                ),
            )

    def _chunks(self, raw: npt.NDArray[np.uint8], unit_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Copies raw into staging, chunk by chunk of whole units; yields (start, bytes, staging index)."""
        chunk_bytes = STAGING_WORDS * 4 // unit_bytes * unit_bytes
        for start in range(0, len(raw), chunk_bytes):
            staging, self._turn = self._turn, 1 - self._turn
            self._device.wait(self._tickets[staging])
            part = raw[start : start + chunk_bytes]
            words = self._staging[staging].words
            assert words is not None
            words.view(np.uint8)[: len(part)] = part
            self._on_bytes(len(part))
            yield start, len(part), staging

    def _copy(self, staging: int, target: Buffer, n_words: int, target_word: int) -> Dispatch:
        return self._device.dispatch(
            KERNELS["copy_words"],
            (self._staging[staging], target),
            constants=(LOCAL_SIZE,),
            groups=(min(GROUPS, -(-n_words // LOCAL_SIZE)), 1),
            push=(n_words, target_word),
        )

    def _run(self, staging: int, dispatch: Dispatch) -> None:
        # chunks of one tensor write different parts, so no order is needed between them
        recording = self._device.record([dispatch])
        self._tickets[staging] = self._device.submit(recording)
        self._in_flight[staging] = [recording, dispatch]
