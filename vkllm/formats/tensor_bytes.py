"""Reads the bytes of tensors from files that were opened before: whole tensors, and rows and columns of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from vkllm.errors import ModelFileError
from vkllm.formats.gguf_header import TensorInfo

Bytes = npt.NDArray[np.uint8]

READ_BYTES = 1024 * 1024
"""What is read at once of rows of which only some columns are wanted."""

KEPT_BYTES = 256 * 1024 * 1024
"""What is kept of what was read for several readers: those that are behind by less need not read it again."""


class SharedReads:
    """Pieces of files that several readers, each in threads of its own, want parts of: the first one reads them.

    most_bytes: what is kept of the last ones. n_bytes: that were read.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self.n_bytes = 0
        self._most_bytes = most_bytes
        self._kept: dict[tuple[Path, int, int], Future[Bytes]] = {}
        self._n_kept = 0
        self._lock = Lock()

    def piece(self, path: Path, name: str, file: int, offset: int, n_bytes: int) -> Bytes:
        """n_bytes of a file from offset on, for the tensor `name`: not to be written to. Raises ModelFileError."""
        key = path, offset, n_bytes
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                reading = self._kept[key] = Future()
                self._n_kept += n_bytes
                self.n_bytes += n_bytes
                while self._n_kept > self._most_bytes and len(self._kept) > 1:
                    oldest = next(iter(self._kept))
                    del self._kept[oldest]
                    self._n_kept -= oldest[2]
        if found is not None:
            return found.result()
        try:
            raw = np.empty(n_bytes, np.uint8)
            read_range(path, name, file, offset, raw)
        except BaseException as error:
            reading.set_exception(error)
            raise
        reading.set_result(raw)
        return raw

    def forget(self) -> None:
        """Keeps nothing any more of what was read."""
        with self._lock:
            self._kept.clear()
            self._n_kept = 0


def read_tensor(path: Path, info: TensorInfo, shared: SharedReads | None = None) -> Bytes:
    """The bytes of one tensor of a model that was opened before: uint8 [n_bytes].

    path: the model's; of a split model, the tensor's entry says in which part it lies. Raises ModelFileError.
    """
    path = info.path or path
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise unreadable(path, info.name, error.strerror) from error
    try:
        raw = np.empty(info.n_bytes, np.uint8)
        read_part(path, info, file, 0, raw, shared)
        return raw
    finally:
        os.close(file)


def read_part(
    path: Path, info: TensorInfo, file: int, first: int, target: Bytes, shared: SharedReads | None = None
) -> None:
    """Fills target with the bytes of a tensor from `first` on, counted within the tensor. file: the open file. shared:
    with others that read the same tensor, or other columns of its rows.

    Raises ModelFileError.
    """
    if info.excerpt is not None:
        _read_excerpt(path, info, file, first, target, shared)
    elif shared is None:
        read_range(path, info.name, file, info.offset + first, target)
    else:
        for start in range(first // READ_BYTES * READ_BYTES, first + len(target), READ_BYTES):
            n_bytes = min(READ_BYTES, info.n_bytes - start)
            raw = shared.piece(path, info.name, file, info.offset + start, n_bytes)
            begin, end = max(start, first), min(start + n_bytes, first + len(target))
            target[begin - first : end - first] = raw[begin - start : end - start]


def _read_excerpt(
    path: Path, info: TensorInfo, file: int, first: int, target: Bytes, shared: SharedReads | None
) -> None:
    assert info.excerpt is not None
    excerpt, row_bytes, end = info.excerpt, info.n_bytes // info.n_rows, first + len(target)
    file_row_bytes = excerpt.n_columns * row_bytes // info.n_columns
    n_at_once = info.n_rows if excerpt.has_whole_rows else max(READ_BYTES // file_row_bytes, 1)
    for row, file_row, n_rows in _runs(excerpt.rows, first // row_bytes, -(-end // row_bytes), n_at_once):
        start, stop = max(first, row * row_bytes), min(end, (row + n_rows) * row_bytes)
        wanted, skipped = target[start - first : stop - first], start - row * row_bytes
        offset, n_bytes = info.offset + file_row * file_row_bytes, n_rows * file_row_bytes
        if file_row < 0:
            wanted[:] = 0
            continue
        if excerpt.has_whole_rows:
            read_range(path, info.name, file, offset + skipped, wanted)
            continue
        raw = (shared or SharedReads(0)).piece(path, info.name, file, offset, n_bytes).reshape(n_rows, -1)
        parts = []
        for columns in excerpt.columns:
            start, stop = (n * row_bytes // info.n_columns for n in (columns.start, columns.stop))
            parts.append(raw[:, start:stop] if start >= 0 else np.zeros((n_rows, stop - start), np.uint8))
        wanted[:] = np.concatenate(parts, axis=1).reshape(-1)[skipped : skipped + len(wanted)]


def _runs(rows: Iterable[range], first: int, end: int, most: int) -> Iterator[tuple[int, int, int]]:
    """The pieces in which rows first to end of an excerpt lie, of up to `most` rows that follow each other in the file:
    the first row of each in the excerpt, in the file, and how many. Whoever reads some of these rows gets the same
    pieces."""
    row = 0  # of the excerpt, where the run begins
    for run in rows:
        begin = row + max(first - row, 0) // most * most
        for start in range(begin, min(end, row + len(run)), most):
            yield start, run.start + start - row, min(most, row + len(run) - start)
        row += len(run)


def read_range(path: Path, name: str, file: int, offset: int, target: Bytes) -> None:
    """Fills target with the bytes of an open file from offset on, for the tensor `name`.

    If the file is truncated while it is loaded, a read raises an error; a memory map would end the process.
    Raises ModelFileError.
    """
    done = 0
    while done < len(target):
        try:
            n_bytes = os.preadv(file, [target[done:].data], offset + done)
        except OSError as error:
            raise unreadable(path, name, error.strerror) from error
        if n_bytes == 0:
            raise unreadable(path, name, "the file ends before it")
        done += n_bytes


def unreadable(path: Path, name: str, reason: str | None) -> ModelFileError:
    """The error for a tensor of a model that was opened before."""
    return ModelFileError(f"{path}: tensor {name!r} can no longer be read ({reason}); was the file moved or changed?")
