"""Files of the Hugging Face hub, in the hub's own cache, which other tools share.

Knows the hub's protocol and the layout of its cache (huggingface_hub does most of both); does not know which file
of a repository is wanted. `hf_hub_download` starts again from nothing when a process ended in the middle, so the bytes
come by `files.py`, into the cache's own part files and under its locks; what a server calls a file is checked before it
becomes a path. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE have their usual meaning.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vkllm.errors import ModelNotFound
from vkllm.store.catalog import HubSource
from vkllm.store.downloads.files import OnProgress, RemoteFile, download, first_line, is_inside, told_for

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_PREFIX = "models--"


def fetch_from_hub(what: str, source: HubSource, sha256: str | None, on_progress: OnProgress) -> Path:
    """Fetches a file as it is now on the hub, unless the cache has it. what: its name in progress and errors.

    sha256: of the wanted file, where known; the hub reports its own, and the bytes must match both. Raises
    ModelNotFound. An unfinished download stays in the cache for the next attempt.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # but documented

    url, etag, commit, n_bytes = _located(what, source)
    published = etag if _SHA256.fullmatch(etag) else sha256
    if sha256 is not None and published != sha256:
        raise ModelNotFound(
            f"{what}: {source.file} of {source.repo} is not the file of the catalogue any more (its sha256 differs); "
            f"`hf:{source.repo}/{source.file}` fetches it as it is now."
        )
    cache, folder = Path(constants.HF_HUB_CACHE), _repo_folder(source.repo)
    blob = folder / "blobs" / etag
    lock = cache / ".locks" / folder.name / f"{etag}.lock"
    with told_for(what, cache, "HF_HOME"):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            pointer = folder / "snapshots" / commit / source.file
            if not blob.exists() and not (pointer.is_file() and not pointer.is_symlink()):
                remote = RemoteFile(what, url, n_bytes, published, "HF_HOME", build_hf_headers())
                download(remote, blob.with_name(f"{blob.name}.incomplete"), blob, on_progress)
            _point_to(blob, pointer)
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs" / "main").write_text(commit)
    return pointer


def remote_file(what: str, source: HubSource) -> RemoteFile:
    """A file of the hub, to read parts of it. Raises ModelNotFound."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # but documented

    url, _, _, n_bytes = _located(what, source)
    return RemoteFile(what, url, n_bytes, None, "HF_HOME", build_hf_headers())


def _located(what: str, source: HubSource) -> tuple[str, str, str, int | None]:
    """Where a file of the hub is: address, ETag, commit, bytes. Raises ModelNotFound."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if not is_inside(source.file) or len(source.repo.split("/")) != 2 or not is_inside(source.repo):
        raise ModelNotFound(f"{what}: {source.repo}/{source.file} cannot be the name of a file of the hub; check it.")
    with _explained(what, source.repo, source.file):
        url = hf_hub_url(source.repo, source.file)
        metadata = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    # Both become names of files, so they have to be what a hub gives: hashes.
    etag, commit = metadata.etag or "", metadata.commit_hash or ""
    if not _ETAG.fullmatch(etag) or not _COMMIT.fullmatch(commit):
        raise ModelNotFound(
            f"{what} could not be fetched: {constants.ENDPOINT} does not answer like a hub; check HF_ENDPOINT."
        )
    return url, etag, commit, metadata.size


def _point_to(blob: Path, pointer: Path) -> None:
    """Makes a file of a snapshot the one with these bytes, as huggingface_hub does."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not blob.exists() or (pointer.exists() and pointer.resolve() == blob.resolve()):
        return
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:  # Windows may not allow links: then the file itself is in the snapshot.
        os.replace(blob, pointer)


def files_on_hub(what: str, repo: str) -> dict[str, int | None]:
    """The GGUF files of a repository and their bytes, where the hub tells. Raises ModelNotFound."""
    from huggingface_hub import HfApi, constants

    with _explained(what, repo):
        info = HfApi().model_info(repo, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    files = {file.rfilename: file.size for file in info.siblings or []}
    return {name: n_bytes for name, n_bytes in files.items() if name.endswith(".gguf") and is_inside(name)}


def cached_files(repo: str) -> dict[str, Path]:
    """The GGUF files of a repository that the cache has: of its main revision, or else of the first that has any,
    such as one that was asked for by its hash."""
    folder = _repo_folder(repo)
    snapshots = sorted(folder.glob("snapshots/*"))
    try:
        commit = (folder / "refs" / "main").read_text().strip()
        if not _COMMIT.fullmatch(commit):
            return {}
        snapshots.insert(0, folder / "snapshots" / commit)
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        return {}
    for snapshot in snapshots:
        if paths := sorted(path for path in snapshot.rglob("*.gguf") if path.is_file()):
            return {path.relative_to(snapshot).as_posix(): path for path in paths}
    return {}


def cached_repos() -> list[str]:
    """The repositories of models in the cache, by name."""
    from huggingface_hub import constants

    folders = sorted(Path(constants.HF_HUB_CACHE).glob(f"{_PREFIX}*--*"))
    return ["/".join(folder.name.removeprefix(_PREFIX).split("--", 1)) for folder in folders]


def remove_from_cache(repo: str, files: list[str]) -> None:
    """Deletes files of a repository from the cache, in all revisions, and the repository's folder if that was all.

    Raises OSError.
    """
    folder = _repo_folder(repo)
    blobs = {cached.readlink().name for cached in _pointers(folder, files) if cached.is_symlink()}
    for pointer in _pointers(folder, files):
        pointer.unlink()
    in_use = {path.readlink().name for path in (folder / "snapshots").rglob("*") if path.is_symlink()}
    for name in blobs - in_use:
        (folder / "blobs" / name).unlink(missing_ok=True)
    if not any(path.is_symlink() or path.is_file() for path in (folder / "snapshots").rglob("*")):
        shutil.rmtree(folder)


def remove_unfinished_from_cache(repo: str, files: list[str]) -> int:
    """Deletes what unfinished downloads of a repository have left, and these files of it; returns the bytes.

    A part file's name does not say which file it belongs to, so those of all unfinished downloads are deleted. Raises
    OSError.
    """
    folder = _repo_folder(repo)
    cached = cached_files(repo)
    parts = sorted((folder / "blobs").glob("*.incomplete"))
    here = [file for file in files if file in cached]
    n_bytes = sum(path.stat().st_size for path in (*parts, *(cached[file] for file in here)))
    for part in parts:
        part.unlink()
    if parts or here:
        remove_from_cache(repo, here)
    return n_bytes


def _pointers(folder: Path, files: list[str]) -> list[Path]:
    """The entries of files in all snapshots of a repository."""
    found = [snapshot / name for snapshot in (folder / "snapshots").glob("*") for name in files]
    return [path for path in found if path.is_symlink() or path.is_file()]


def _repo_folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / (_PREFIX + repo.replace("/", "--"))


@contextmanager
def _explained(what: str, repo: str, file: str | None = None) -> Iterator[None]:
    """Turns what the hub refuses, and whatever its HTTP client raises, into ModelNotFound."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    where = repo if file is None else f"{file} of {repo}"
    try:
        yield
    except GatedRepoError as error:
        problem = (
            f"{where}: its owner asks for your consent; give it at {constants.ENDPOINT}/{repo} and run `hf auth login`"
        )
        raise ModelNotFound(f"{what} could not be fetched: {problem}.") from error
    except RepositoryNotFoundError as error:
        problem = f"{where}: there is no such repository, or it is private; check the name, or run `hf auth login`"
        raise ModelNotFound(f"{what} could not be fetched: {problem}.") from error
    except HFValidationError as error:
        raise ModelNotFound(f"{what}: {repo!r} is not the name of a repository; it is owner/name.") from error
    except OfflineModeIsEnabled as error:
        problem = f"{where} is not here, and HF_HUB_OFFLINE forbids a search on the network; unset it"
        raise ModelNotFound(f"{what} could not be fetched: {problem}.") from error
    except LocalEntryNotFoundError as error:  # Says that the network failed, though its base class says otherwise.
        raise _unreachable(what, where, error) from error
    except EntryNotFoundError as error:
        problem = f"{where}: there is no such file (404); check the name"
        raise ModelNotFound(f"{what} could not be fetched: {problem}.") from error
    except Exception as error:
        raise _unreachable(what, where, error) from error


def _unreachable(what: str, where: str, error: Exception) -> ModelNotFound:
    return ModelNotFound(f"{what} could not be fetched: {where}: {first_line(error)}; check the network and try again.")
