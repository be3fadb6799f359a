"""Files at any address: fetched into vkllm's own cache, under the address as a path.

Knows addresses and the validators that servers give; does not know what is in a file but its first four letters.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from vkllm.errors import ModelNotFound
from vkllm.resources import models_dir
from vkllm.store.downloads.files import (
    BrokenOff,
    OnProgress,
    RemoteFile,
    chunks_of,
    download,
    is_inside,
    length_of,
    response_to,
    told_for,
)


def web_path(url: str) -> Path:
    """Where the file of an address is, or will be: models/https/example.org/folder/model.gguf.

    The query is ignored: it is a token or asks for a download. Raises ModelNotFound for an address that cannot
    be a file's.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise ModelNotFound(f"{url}: this is not an address: {error}; check it.") from None
    names = [unquote(name) for name in parts.path.split("/")[1:]]
    if not parts.hostname or not names or not names[-1].endswith(".gguf"):
        raise ModelNotFound(f"{url}: this is not the address of a model; it has to end in .gguf.")
    if any("/" in name or not is_inside(name) for name in names) or set(parts.hostname) <= {"."}:
        raise ModelNotFound(f"{url}: this address cannot be kept as a path; download the file and give its path.")
    host = quote(parts.hostname + port, safe="")
    return models_dir().joinpath(parts.scheme, host, *names)


def web_files() -> dict[str, Path]:
    """The files that were fetched from addresses: address -> path."""
    found = {}
    for scheme in ("http", "https"):
        for path in sorted((models_dir() / scheme).rglob("*.gguf")):
            host, *names = path.relative_to(models_dir() / scheme).parts
            if not names or not path.is_file():  # a folder, or a link to nothing
                continue
            found[f"{scheme}://{unquote(host)}/{'/'.join(quote(name) for name in names)}"] = path
    return found


def remove_unfinished_from_web(url: str) -> int:
    """Deletes what was fetched from an address, whole or not; returns the bytes. Raises OSError."""
    path = web_path(url)
    found = [part for part in path.parent.glob("*.incomplete") if part.name.startswith(f"{path.name}.")]
    if path.is_file():
        found.append(path)
    n_bytes = sum(part.stat().st_size for part in found)
    for part in found:
        part.unlink()
    return n_bytes


def fetch_from_web(what: str, url: str, on_progress: OnProgress) -> Path:
    """Fetches a file. what: its name in progress and errors. Raises ModelNotFound.

    A download goes on where it stopped if the server says that the file is still the same one.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # but documented

    path = web_path(url)
    try:
        with response_to(what, url, {}) as response:
            if next(chunks_of(response), b"")[:4] != b"GGUF":
                raise ModelNotFound(f"{what} could not be fetched: {url} is not a GGUF file; check the address.")
            n_bytes = length_of(response)
            validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
    except BrokenOff as error:
        raise ModelNotFound(f"{what} could not be fetched: {error}; check the network and try again.") from error
    # The name distinguishes this part file from that of another version of the file.
    version = hashlib.sha256(f"{validator} {n_bytes}".encode()).hexdigest()[:16]
    part = path.with_name(f"{path.name}.{version}.incomplete")
    lock = models_dir() / ".locks" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.lock"
    with told_for(what, models_dir(), "VKLLM_CACHE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not path.exists():
                for other in path.parent.iterdir():
                    is_part = other.name.startswith(f"{path.name}.") and other.name.endswith(".incomplete")
                    if is_part and (validator is None or other != part):
                        other.unlink()
                download(RemoteFile(what, url, n_bytes, None, "VKLLM_CACHE"), part, path, on_progress)
    return path
