"""Files that have a published sha256: reading all of one takes seconds to minutes, so a mark says that it was done.

Knows the marks' folder and what a mark holds; does not know where files come from.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from vkllm.resources import models_dir
from vkllm.store.catalog import CatalogEntry
from vkllm.store.downloads.files import OnProgress

_CHUNK_BYTES = 1 << 20


def is_as_published(entry: CatalogEntry, path: Path, on_progress: OnProgress) -> bool:
    """Whether a file has the catalogue's sha256; reads all of it."""
    digest = hashlib.sha256()
    n_done = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            n_done += len(chunk)
            on_progress(f"checking {entry.name}", n_done, entry.n_bytes)
    return digest.hexdigest() == entry.sha256


def mark_path(entry: CatalogEntry) -> Path:
    """Where the mark of a catalogue model is."""
    return models_dir() / f"{entry.name}.checked"


def mark_checked(entry: CatalogEntry, path: Path) -> None:
    """Notes that the file as it is now has the right sha256, so that later starts need not read it all."""
    models_dir().mkdir(parents=True, exist_ok=True)
    mark_path(entry).write_text(_state(entry, path))


def is_marked_checked(entry: CatalogEntry, path: Path) -> bool:
    """Whether the file is still the one that was checked, by the catalogue's sha256 of today."""
    try:
        return mark_path(entry).read_text() == _state(entry, path)
    except OSError:
        return False


def is_checked(entry: CatalogEntry, path: Path) -> bool:
    """Whether the file is the published one: by its mark, or, where there is none for the file as it is, by its sha256.

    A cache that was copied has files with other times than their marks say, and is as good as before.
    """
    if is_marked_checked(entry, path):
        return True
    try:
        if path.stat().st_size != entry.n_bytes or not is_as_published(entry, path, lambda *_: None):
            return False
    except OSError:
        return False
    with contextlib.suppress(OSError):  # A read-only cache is read again the next time.
        mark_checked(entry, path)
    return True


def _state(entry: CatalogEntry, path: Path) -> str:
    stat = path.stat()
    return f"{entry.sha256} {stat.st_size} {stat.st_mtime_ns}\n"
