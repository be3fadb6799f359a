"""Fetching from the hub: what comes into its cache, and one clear sentence for everything that can go wrong."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, HubServer
from huggingface_hub import hf_hub_download

from vkllm.errors import ModelNotFound
from vkllm.store.catalog import HubSource
from vkllm.store.downloads.hub import cached_files, cached_repos, fetch_from_hub, files_on_hub, remove_from_cache

REPO = "someone/tiny-GGUF"
CONTENT = b"GGUF" + os.urandom(3_000_000)
SOURCE = HubSource(REPO, "tiny.gguf")


@pytest.fixture(autouse=True)
def tiny(hub: HubServer) -> None:
    hub.hub[REPO] = {"tiny.gguf": CONTENT, "README.md": b"about it"}


def fetch(source: HubSource = SOURCE, sha256: str | None = None) -> Path:
    return fetch_from_hub("tiny", source, sha256, lambda *_: None)


def fetch_error(source: HubSource = SOURCE, sha256: str | None = None) -> str:
    """The sentence with which a fetch fails; nothing may be there to be used after it."""
    with pytest.raises(ModelNotFound) as caught:
        fetch(source, sha256)
    assert cached_files(source.repo) == {}
    text = str(caught.value)
    assert "\n" not in text and text.startswith("tiny")
    return text


def parts(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hub").rglob("*.incomplete"))


# --- What works ------------------------------------------------------------------------------------------------------


def test_a_file_comes_into_the_cache_that_other_tools_share(hub: HubServer, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    path = fetch_from_hub("tiny", SOURCE, None, lambda *step: steps.append(step))
    assert path.read_bytes() == CONTENT
    assert path.parent == tmp_path / "hub" / "models--someone--tiny-GGUF" / "snapshots" / COMMIT
    assert steps[-1] == ("fetching tiny", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert parts(tmp_path) == []
    hub.seen.clear()
    assert hf_hub_download(REPO, "tiny.gguf") == str(path)
    assert hub.lines("GET /cdn/") == []


def test_what_another_tool_fetched_is_used(hub: HubServer) -> None:
    path = hf_hub_download(REPO, "tiny.gguf")
    assert cached_files(REPO) == {"tiny.gguf": Path(path)}
    hub.seen.clear()
    assert fetch() == Path(path)
    assert hub.lines("GET") == []


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch()
    for seen in hub.seen:
        assert (seen.authorization == "Bearer hf_secret") == ("/resolve/" in seen.line), seen


def test_a_cut_is_gone_on_from_at_once(hub: HubServer) -> None:
    hub.faults.cut_after, hub.faults.n_cuts = 1_200_000, 2
    assert fetch().read_bytes() == CONTENT
    assert [seen.start for seen in hub.seen if "/cdn/" in seen.line] == [0, 1_200_000, 2_400_000]


def test_a_killed_download_goes_on_where_it_stopped(hub: HubServer, tmp_path: Path) -> None:
    def interrupt(_what: str, n_done: int, _total: int) -> None:
        if n_done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_from_hub("tiny", SOURCE, None, interrupt)
    n_kept = parts(tmp_path)[0].stat().st_size
    assert 1_000_000 < n_kept < len(CONTENT)
    assert cached_files(REPO) == {}
    hub.seen.clear()
    assert fetch().read_bytes() == CONTENT
    assert [seen.start for seen in hub.seen if "/cdn/" in seen.line] == [n_kept]
    assert parts(tmp_path) == []


def test_a_server_that_ignores_ranges_sends_all_again(hub: HubServer) -> None:
    hub.faults.cut_after, hub.faults.n_cuts = 1_200_000, 1
    hub.faults.ignores_ranges = True
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT[:-1] + b"x", CONTENT + b"and more", CONTENT])
def test_a_part_that_is_wrong_too_long_or_whole_ends_with_the_right_file(tmp_path: Path, left: bytes) -> None:
    fetch()
    blob = next((tmp_path / "hub").rglob("blobs/*"))
    remove_from_cache(REPO, ["tiny.gguf"])
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(left)
    if left == CONTENT[:-1] + b"x":
        assert "its sha256 differs" in fetch_error()
    assert fetch().read_bytes() == CONTENT


def test_two_fetches_at_once_both_get_the_whole_file(hub: HubServer) -> None:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(fetch().read_bytes() == CONTENT)
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 3
    assert len(hub.lines("GET /cdn/")) == 1


def test_files_of_a_repository_are_its_ggufs_with_their_sizes() -> None:
    assert files_on_hub("tiny", REPO) == {"tiny.gguf": len(CONTENT)}


# --- What goes wrong -------------------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_is_an_error_and_goes_on_later(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.cut_after = 0
    error = fetch_error()
    assert "the download broke off after 0 B of 2.9 MiB (" in error and "it resumes there" in error
    hub.faults.cut_after, hub.faults.n_cuts = 1_200_000, 1
    hub.faults.status = None
    assert fetch().read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_nothing_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.announced_sha256 = "0" * 64
    assert "tiny: the download is not the published file (its sha256 differs); try again" in fetch_error()
    assert parts(tmp_path) == []
    hub.faults.announced_sha256 = None
    assert fetch().read_bytes() == CONTENT


def test_a_file_that_is_not_the_catalogues_is_refused_before_it_is_fetched(hub: HubServer) -> None:
    error = fetch_error(sha256="0" * 64)
    assert "not the file of the catalogue any more (its sha256 differs); `hf:someone/tiny-GGUF/tiny.gguf`" in error
    assert hub.lines("GET /cdn/") == []


def test_a_missing_file_and_a_missing_repository_are_told_apart(hub: HubServer) -> None:
    error = fetch_error(HubSource(REPO, "other.gguf"))
    assert "other.gguf of someone/tiny-GGUF: there is no such file (404); check the name" in error
    error = fetch_error(HubSource("someone/else", "tiny.gguf"))
    assert "there is no such repository, or it is private; check the name, or run `hf auth login`" in error
    with pytest.raises(ModelNotFound, match="tiny could not be fetched: someone/else: there is no such repository"):
        files_on_hub("tiny", "someone/else")


def test_a_name_that_no_repository_can_have_is_told() -> None:
    assert "'some--one/tiny' is not the name of a repository" in fetch_error(HubSource("some--one/tiny", "tiny.gguf"))
    with pytest.raises(ModelNotFound, match="'some--one/tiny' is not the name of a repository; it is owner/name"):
        files_on_hub("tiny", "some--one/tiny")


def test_a_gated_repository_says_where_to_give_consent(hub: HubServer) -> None:
    hub.faults.is_gated = True
    assert f"asks for your consent; give it at {hub.url}/{REPO} and run `hf auth login`" in fetch_error()
    hub.faults.is_gated = False
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "words"), [(404, "no such file (404)"), (403, "forbidden (403)"), (503, "503")])
def test_a_server_of_bytes_that_refuses_is_told(hub: HubServer, status: int, words: str) -> None:
    hub.faults.status = status
    assert words in fetch_error()
    hub.faults.status = None
    assert fetch().read_bytes() == CONTENT


def test_a_server_that_is_no_hub_is_told(hub: HubServer) -> None:
    hub.faults.is_no_hub = True
    assert f"{hub.url} does not answer like a hub; check HF_ENDPOINT" in fetch_error()


def test_no_network_is_told_at_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            "http://127.0.0.1:9/{repo_id}/{revision}/{filename}",
        )
        assert "tiny.gguf of someone/tiny-GGUF: [Errno 111] Connection refused; check the network" in fetch_error()
    assert fetch().read_bytes() == CONTENT


def test_offline_mode_says_what_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE forbids a search on the network; unset it" in fetch_error()
    path = fetch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cached_files(REPO) == {"tiny.gguf": path}


def test_a_full_disk_is_noticed_before_the_download(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 1_000_000))
        assert "tiny needs 2.9 MiB more in " in (error := fetch_error())
        assert "and 977 KiB are free; make room, or set HF_HOME to use another folder" in error
    assert fetch().read_bytes() == CONTENT


class _FullDisk:
    """A file that has room for a while."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_disk_that_fills_up_on_the_way_loses_nothing(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_on_full_disk(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real_open(path, mode, *args, **kwargs)
        return _FullDisk(file, 2_000_000) if mode == "ab" else file

    real_open = Path.open
    with monkeypatch.context() as context:
        context.setattr(Path, "open", open_on_full_disk)
        error = fetch_error()
    assert "No space left on device; what is here so far is kept; make room, or set HF_HOME" in error
    n_kept = parts(tmp_path)[0].stat().st_size
    assert n_kept > 0
    hub.seen.clear()
    assert fetch().read_bytes() == CONTENT
    assert [seen.start for seen in hub.seen if "/cdn/" in seen.line] == [n_kept]


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where the folder should be")
    error = fetch_error()
    assert f"tiny could not be fetched into {tmp_path / 'hub'}: " in error and "set HF_HOME" in error
    (tmp_path / "hub").unlink()
    assert fetch().read_bytes() == CONTENT


# --- The cache -------------------------------------------------------------------------------------------------------


def test_removing_the_only_file_removes_the_repositorys_folder(tmp_path: Path) -> None:
    fetch()
    assert cached_repos() == [REPO]
    remove_from_cache(REPO, ["tiny.gguf"])
    assert cached_repos() == [] and cached_files(REPO) == {}
    assert not list((tmp_path / "hub").rglob("blobs/*"))


def test_removing_keeps_other_files_and_bytes_that_they_share(hub: HubServer, tmp_path: Path) -> None:
    hub.hub[REPO] |= {"same.gguf": CONTENT, "other.gguf": b"GGUF other"}
    for name in ("tiny.gguf", "same.gguf", "other.gguf"):
        fetch(HubSource(REPO, name))
    remove_from_cache(REPO, ["tiny.gguf"])
    assert {name: path.read_bytes() for name, path in cached_files(REPO).items()} == {
        "same.gguf": CONTENT,
        "other.gguf": b"GGUF other",
    }
    remove_from_cache(REPO, ["same.gguf"])
    assert [path.read_bytes() for path in (tmp_path / "hub").rglob("blobs/*")] == [b"GGUF other"]


def test_the_hubs_own_variables_are_honoured(hub: HubServer, tmp_path: Path) -> None:
    """In a process of its own, since huggingface_hub reads them when it is imported."""
    script = (
        "from vkllm.store.downloads.hub import fetch_from_hub; from vkllm.store.catalog import HubSource; "
        f"print(fetch_from_hub('tiny', HubSource({REPO!r}, 'tiny.gguf'), None, lambda *_: None))"
    )
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        env.pop(name, None)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert Path(done.stdout.strip()).read_bytes() == CONTENT
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home" / "hub")
