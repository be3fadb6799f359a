"""Weights on the GPU: raw GGUF bytes go through host-visible staging and are split into planes there.

A few staging buffers take turns: threads read the next chunks of the file into some while the GPU splits others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vkllm.formats.gguf import TensorInfo
from vkllm.formats.quants import Format, weight_format
from vkllm.formats.tensor_bytes import SharedReads, read_part, unreadable
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.kernels import KERNELS

STAGING_WORDS = 6 * 1024 * 1024
N_STAGING = 4
N_READERS = 2
"""Threads that fill a staging buffer; one copies about 2 GB/s."""

LOCAL_SIZE = 64
GROUPS = 1024

Bytes = npt.NDArray[np.uint8]


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
    """A tensor to upload, or rows of one: its file, its entry, which of its bytes come first, and how many rows."""

    path: Path
    info: TensorInfo
    first_byte: int
    n_rows: int

    @classmethod
    def whole(cls, path: Path, info: TensorInfo) -> Tensor:
        """All rows. path: the model's."""
        return cls(info.path or path, info, 0, info.n_rows)

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        fmt = weight_format(self.info.format)
        return self.n_rows * self.info.n_columns // fmt.block * fmt.block_bytes

    def rows(self, first: int, n: int) -> Tensor:
        """Some of its rows. They must begin and end at a block of the format."""
        fmt, columns = weight_format(self.info.format), self.info.n_columns
        assert first * columns % fmt.block == 0 and n * columns % fmt.block == 0
        row_bytes = fmt.block_bytes * columns // fmt.block
        return replace(self, first_byte=self.first_byte + first * row_bytes, n_rows=n)


class _Staging:
    """A staging buffer: `reading` fills it, then the dispatch that `use` makes reads it, submitted as `ticket`."""

    def __init__(self, buffer: Buffer) -> None:
        assert buffer.words is not None
        self.buffer = buffer
        self.bytes: Bytes = buffer.words.view(np.uint8)
        self.reading: list[Future[None]] = []
        self.use: Callable[[Buffer], Dispatch] | None = None
        self.ticket = 0
        self.in_flight: object = None  # what must live until the ticket is done


class Uploader:
    """Fills buffers, in one thread. on_bytes is called with the number of bytes queued since the last call. shared:
    with those that load other parts of the model."""

    def __init__(
        self,
        device: Device,
        on_bytes: Callable[[int], None] = lambda n_bytes: None,
        shared: SharedReads | None = None,
    ) -> None:
        self._shared = shared
        self._device = device
        self._on_bytes = on_bytes
        self._staging = [_Staging(device.buffer(STAGING_WORDS, tier="host")) for _ in range(N_STAGING)]
        self._turn = 0
        self._pool = ThreadPoolExecutor(N_STAGING * N_READERS, "vkllm-read")
        self._files: dict[Path, int] = {}

    def matrix(self, tensors: Sequence[Tensor], allocate: Callable[[int], Buffer]) -> WeightPlanes:
        """Uploads tensors of one format and width, stacked into one matrix. allocate(n_words) makes its buffers. Raises
        ModelFileError, also for earlier uploads.
        """
        fmt, n_columns = weight_format(tensors[0].info.format), tensors[0].info.n_columns
        assert all((t.info.format, t.info.n_columns) == (fmt.name, n_columns) for t in tensors)
        n_rows = sum(t.n_rows for t in tensors)
        quant_words, scale_words = fmt.plane_words(n_rows * n_columns)
        quants = allocate(quant_words)
        scales = allocate(scale_words) if fmt.is_quantized else quants
        if fmt.has_codebook:
            self.words(fmt.codebook, scales)
        first_value = 0
        for tensor in tensors:
            assert first_value % fmt.unit == 0
            self._split(tensor, fmt, quants, scales, first_value // fmt.unit)
            first_value += tensor.n_rows * n_columns
        return WeightPlanes(quants, scales, fmt.name, n_rows, n_columns)

    def words(self, words: npt.NDArray[np.generic], target: Buffer) -> None:
        """Copies an array of 4-byte numbers to the beginning of a buffer."""
        raw = np.ascontiguousarray(words).reshape(-1).view(np.uint8)
        for start in range(0, len(raw), 4 * STAGING_WORDS):
            part = raw[start : start + 4 * STAGING_WORDS]

            def fill(target: Bytes, first: int, part: Bytes = part) -> None:
                target[:] = part[first : first + len(target)]

            def use(staging: Buffer, start: int = start, n_bytes: int = len(part)) -> Dispatch:
                return self._copy(staging, target, n_bytes // 4, start // 4)

            self._stage(len(part), fill, use)

    def finish(self) -> None:
        """Waits until everything is on the device and closes. Raises ModelFileError."""
        for i in range(N_STAGING):
            self._flush(self._staging[(self._turn + i) % N_STAGING])
        for staging in self._staging:
            self._device.wait(staging.ticket)
        self.close()

    def close(self) -> None:
        """Frees the staging buffers and closes the files, also after an error. Safe to call twice."""
        self._pool.shutdown(cancel_futures=True)
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        self._staging.clear()

    def _split(self, tensor: Tensor, fmt: Format, quants: Buffer, scales: Buffer, first_unit: int) -> None:
        chunk_bytes = STAGING_WORDS * 4 // fmt.unit_bytes * fmt.unit_bytes
        for start in range(0, tensor.n_bytes, chunk_bytes):
            n_bytes = min(chunk_bytes, tensor.n_bytes - start)
            file, at = self._file(tensor), tensor.first_byte + start

            def fill(target: Bytes, first: int, file: int = file, at: int = at) -> None:
                read_part(tensor.path, tensor.info, file, at + first, target, self._shared)

            def use(
                staging: Buffer, unit: int = first_unit + start // fmt.unit_bytes, n_bytes: int = n_bytes
            ) -> Dispatch:
                if not fmt.is_quantized:
                    return self._copy(staging, quants, n_bytes // 4, unit * fmt.quant_words)
                n_units = -(-n_bytes // fmt.unit_bytes)
                assert staging.words is not None
                staging.words.view(np.uint8)[n_bytes : n_units * fmt.unit_bytes] = 0  # instead of an earlier chunk's
                return self._device.dispatch(
                    KERNELS["split_planes"],
                    (staging, quants, scales),
                    constants=(LOCAL_SIZE,),
                    groups=(min(GROUPS, -(-n_units // LOCAL_SIZE)), 1),
                    push=(n_units, unit),
                    weight_format=fmt.name,
                )

            self._stage(n_bytes, fill, use)

    def _stage(self, n_bytes: int, fill: Callable[[Bytes, int], None], use: Callable[[Buffer], Dispatch]) -> None:
        """Starts filling the next staging buffer in the background; the dispatch that reads it follows when it is full.

        fill(target, first) writes the bytes of the chunk from `first` on.
        """
        staging, self._turn = self._staging[self._turn], (self._turn + 1) % N_STAGING
        self._flush(staging)
        self._device.wait(staging.ticket)
        part = -(-n_bytes // N_READERS)
        staging.reading = [
            self._pool.submit(fill, staging.bytes[first : min(first + part, n_bytes)], first)
            for first in range(0, n_bytes, part)
        ]
        staging.use = use
        self._on_bytes(n_bytes)

    def _flush(self, staging: _Staging) -> None:
        """Submits what reads a staging buffer, once it is full. Chunks write different parts, so need no order."""
        if staging.use is None:
            return
        for reading in staging.reading:
            reading.result()
        dispatch = staging.use(staging.buffer)
        recording = self._device.record([dispatch])
        staging.ticket = self._device.submit(recording)
        staging.in_flight = (recording, dispatch)
        staging.use = None

    def _file(self, tensor: Tensor) -> int:
        if tensor.path not in self._files:
            try:
                self._files[tensor.path] = os.open(tensor.path, os.O_RDONLY)
            except OSError as error:
                raise unreadable(tensor.path, tensor.info.name, error.strerror) from error
        return self._files[tensor.path]

    def _copy(self, staging: Buffer, target: Buffer, n_words: int, target_word: int) -> Dispatch:
        return self._device.dispatch(
            KERNELS["copy_words"],
            (staging, target),
            constants=(LOCAL_SIZE,),
            groups=(min(GROUPS, -(-n_words // LOCAL_SIZE)), 1),
            push=(n_words, target_word, 0),
        )
