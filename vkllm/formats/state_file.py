"""The file of a saved conversation: an .npz as numpy writes it, not compressed, with a header in JSON.

Knows how arrays are written and read: one by one, without pickles, each with its checksum; a file is complete or not
there. Does not know what the arrays are (engine/saved_state.py).
"""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vkllm.errors import StateFileError

HEADER = "header.json"
MAX_HEADER_BYTES = 1 << 16
CHUNK_BYTES = 1 << 20
MAX_READ_BYTES = 4 << 20
"""The most that is read at once: the archive's directory may be as long as the file's author wanted."""

_npy: Any = np.lib.format  # numpy has no types for it


class StateWriter:
    """Appends to a file that is being written. Made by `writing`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def header(self, fields: Mapping[str, str | int]) -> None:
        """Writes what has to be known before any array is read."""
        with self._member(HEADER) as stream:
            stream.write(json.dumps(fields, indent=2).encode())

    def array(self, name: str, values: npt.NDArray[Any]) -> None:
        """Writes an array of numbers."""
        with self._member(f"{name}.npy") as stream:
            _npy.write_array(stream, values, allow_pickle=False)

    def _member(self, name: str) -> IO[bytes]:
        # the same conversation makes the same file, so it has no timestamp
        return self._archive.open(zipfile.ZipInfo(name), "w", force_zip64=True)


@contextmanager
def writing(path: Path) -> Iterator[StateWriter]:
    """A file that takes the place of `path` when the block has ended; if the block fails, nothing of it remains.

    Raises StateFileError if the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")  # a killed process leaves it, and the next one overwrites it
    try:
        try:
            with part.open("wb") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    yield StateWriter(archive)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StateFileError(
            f"{path}: the state cannot be saved here ({error.strerror or error}); nothing was written, so "
            f"{_way_out(path, error)}"
        ) from error


def _way_out(path: Path, error: OSError) -> str:
    """What to do where a state cannot be written."""
    if path.is_dir():
        return "name a file in this folder"
    if not path.parent.is_dir():
        return f"make the folder {path.parent} first, or choose another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room or choose another place"
    return "choose another place, or change who may write here"


class StateReader:
    """Reads what a file holds. Made by `reading`; its methods raise StateFileError for damaged or missing data."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive

    def header(self) -> dict[str, Any]:
        """The header's fields. Only the checksum was verified; the values may be anything."""
        with _damage_told(self._path):
            if self._archive.getinfo(HEADER).file_size > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            with self._member(HEADER) as stream:
                fields = json.loads(stream.read())
            if not isinstance(fields, dict):
                raise ValueError("its header is not an object")
            return fields

    def has(self, name: str) -> bool:
        """Whether there is an array of that name."""
        return f"{name}.npy" in self._archive.NameToInfo

    def read_into(self, name: str, target: npt.NDArray[Any]) -> None:
        """Fills a C-ordered array with the one of that name, which must have its shape and type."""
        with _damage_told(self._path), self._member(f"{name}.npy") as stream:
            if _npy.read_magic(stream) != (1, 0):
                raise ValueError(f"{name} is of another version of numpy's format")
            if _npy.read_array_header_1_0(stream) != (target.shape, False, target.dtype):
                raise ValueError(f"{name} has another shape or type than it should")
            assert target.flags.c_contiguous
            raw = target.reshape(-1).view(np.uint8)
            for start in range(0, len(raw), CHUNK_BYTES):
                chunk = raw[start : start + CHUNK_BYTES]
                chunk[:] = np.frombuffer(stream.read(len(chunk)), np.uint8)
            if stream.read(1):  # the read of the last byte has checked the checksum
                raise ValueError(f"{name} is too long")

    def _member(self, name: str) -> IO[bytes]:
        if self._archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        return self._archive.open(name)


class _BoundedFile(io.BufferedReader):
    """A file that refuses to read very much at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        is_bounded = size is not None and 0 <= size <= MAX_READ_BYTES
        found = super().read(size if is_bounded else MAX_READ_BYTES + 1)
        if len(found) > MAX_READ_BYTES:
            raise ValueError("its directory is too long")
        return found


@contextmanager
def reading(path: Path) -> Iterator[StateReader]:
    """Opens a file that `writing` has made. Raises StateFileError if it is missing or not such a file."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would never end
            raise StateFileError(f"{path}: the state cannot be read (it is not a file); check the path")
        file = _BoundedFile(io.FileIO(path))
    except OSError as error:
        raise StateFileError(f"{path}: the state cannot be read ({error.strerror}); check the path") from error
    with file:
        with _damage_told(path):
            archive = zipfile.ZipFile(file)
        with archive:
            yield StateReader(path, archive)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Wraps reads: whatever zipfile, json and numpy raise on damage becomes a StateFileError."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, LookupError, RuntimeError, OverflowError),
        *(NotImplementedError, SyntaxError, TypeError, MemoryError),
    ) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise unsound(path, said) from error


def unsound(path: Path, reason: str) -> StateFileError:
    """The error for a file that is damaged or holds something else."""
    reason = " ".join(reason.split())[:100]
    return StateFileError(f"{path}: not a sound saved state ({reason}); run the conversation again and save it again")
