"""Reads the bytes of tensors from files that were opened before: whole tensors, and rows and columns of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vkllm.errors import ModelFileError
from vkllm.formats.gguf_header import TensorInfo

Bytes = npt.NDArray[np.uint8]

READ_BYTES = 1024 * 1024
"""What is read at once of rows of which only some columns are wanted."""


def read_tensor(path: Path, info: TensorInfo) -> Bytes:
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
        read_part(path, info, file, 0, raw)
        return raw
    finally:
        os.close(file)


def read_part(path: Path, info: TensorInfo, file: int, first: int, target: Bytes) -> None:
    """Fills target with the bytes of a tensor from `first` on, counted within the tensor. file: the open file.

    Raises ModelFileError.
    """
    if info.excerpt is None:
        read_range(path, info.name, file, info.offset + first, target)
        return
    excerpt, row_bytes, end = info.excerpt, info.n_bytes // info.n_rows, first + len(target)
    file_row_bytes = excerpt.n_columns * row_bytes // info.n_columns
    n_at_once = len(target) if excerpt.has_whole_rows else max(READ_BYTES // file_row_bytes, 1)
    for row, file_row, n_rows in _runs(excerpt.rows, first // row_bytes, -(-end // row_bytes), n_at_once):
        start, stop = max(first, row * row_bytes), min(end, (row + n_rows) * row_bytes)
        wanted, skipped = target[start - first : stop - first], start - row * row_bytes
        offset = info.offset + file_row * file_row_bytes
        if file_row < 0:
            wanted[:] = 0
            continue
        if excerpt.has_whole_rows:
            read_range(path, info.name, file, offset + skipped, wanted)
            continue
        raw = np.empty((n_rows, file_row_bytes), np.uint8)
        read_range(path, info.name, file, offset, raw.reshape(-1))
        parts = []
        for columns in excerpt.columns:
            start, stop = (n * row_bytes // info.n_columns for n in (columns.start, columns.stop))
            parts.append(raw[:, start:stop] if start >= 0 else np.zeros((n_rows, stop - start), np.uint8))
        wanted[:] = np.concatenate(parts, axis=1).reshape(-1)[skipped : skipped + len(wanted)]


def _runs(rows: Iterable[range], first: int, end: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Rows first to end of an excerpt in pieces of up to `most` that follow each other in the file: the first row of
    each in the excerpt, in the file, and how many."""
    row = 0  # of the excerpt, where the run begins
    for run in rows:
        for start in range(max(first, row), min(end, row + len(run)), most):
            yield start, run.start + start - row, min(most, end - start, row + len(run) - start)
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
