"""The headers of model files that stay where they are: enough to plan a model without fetching it.

Knows requests for parts of files; what is in a header, and where it ends, is known in `formats`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vkllm.errors import ModelNotFound, VkllmError
from vkllm.formats.gguf import has_whole_header
from vkllm.store.downloads.files import BrokenOff, RemoteFile, chunks_of, response_to, told_for

FIRST_BYTES = 4 << 20
"""Bytes of the first request: many headers are shorter; those with large vocabularies need a second one."""
MOST_BYTES = 256 << 20
"""No header is longer."""
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")


@dataclass(frozen=True)
class FetchedHeaders:
    """The beginnings of a model's files, in a temporary folder. path: of the first. whole_bytes: how long each file
    is, by name."""

    path: Path
    whole_bytes: Mapping[str, int]

    @property
    def n_bytes(self) -> int:
        """Of all files."""
        return sum(self.whole_bytes.values())


@contextmanager
def fetched_headers(files: Sequence[RemoteFile]) -> Iterator[FetchedHeaders]:
    """Fetches the header of each file of a model, the first part first, and nothing else of it.

    Nothing is left behind, and errors about the headers name the files, not the folder. Raises
    ModelNotFound.
    """
    what = files[0].what
    with told_for(what, Path(tempfile.gettempdir()), "TMPDIR"):
        folder = tempfile.TemporaryDirectory(prefix="vkllm-headers-", ignore_cleanup_errors=True)
    with folder as name:
        paths = [Path(name) / _file_name(file.url) for file in files]
        with told_for(what, Path(name), "TMPDIR"):
            sizes = {path.name: _fetch(file, path) for path, file in zip(paths, files, strict=True)}
        try:
            yield FetchedHeaders(paths[0], sizes)
        except VkllmError as error:
            raise type(error)(str(error).replace(f"{name}/", "")) from error


def _file_name(url: str) -> str:
    """A name for a file of an address; of a blob the one that it has on a disk."""
    return url.partition("?")[0].rpartition("/")[2].replace(":", "-")


def _fetch(file: RemoteFile, path: Path) -> int:
    """Writes the beginning of a file, until its header is whole; returns the file's size in bytes."""
    n_wanted = FIRST_BYTES
    while True:
        try:
            file_bytes = _append(file, path, n_wanted)
        except BrokenOff as error:
            raise ModelNotFound(
                f"the header of {file.what} could not be fetched: {error}; check the network and try again."
            ) from error
        n_done = path.stat().st_size
        if n_done >= min(file_bytes, MOST_BYTES) or has_whole_header(path):
            return file_bytes
        n_wanted = min(4 * n_wanted, MOST_BYTES)


def _append(file: RemoteFile, path: Path, n_wanted: int) -> int:
    """Asks for what is missing of the first n_wanted bytes; returns the size of the whole file."""
    n_here = path.stat().st_size if path.exists() else 0
    headers = {**file.headers, "Range": f"bytes={n_here}-{n_wanted - 1}"}
    with response_to(file.what, file.url, headers) as response, path.open("ab") as output:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or match is None or int(match[1]) != n_here:
            raise ModelNotFound(
                f"{file.what} cannot be planned from here: its server sends no parts of files; `vkllm pull` fetches it."
            )
        for chunk in chunks_of(response):
            output.write(chunk[: max(n_wanted - output.tell(), 0)])
            if output.tell() >= n_wanted:
                break
        return int(match[2])
