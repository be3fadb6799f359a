"""Fetching from any address: where the file goes, resuming, and one clear sentence for everything that goes wrong."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hub_server import HubServer

from vkllm.errors import ModelNotFound
from vkllm.store.downloads.files import OnProgress, _PartFile
from vkllm.store.downloads.web import fetch_from_web, web_files, web_path

CONTENT = b"GGUF" + bytes(range(256)) * 8192


@pytest.fixture
def url(hub: HubServer) -> str:
    hub.files["/models/tiny.gguf"] = CONTENT
    return f"{hub.url}/models/tiny.gguf"


def fetch_error(url: str) -> str:
    """The sentence with which a fetch fails; nothing may be there to be used after it."""
    with pytest.raises(ModelNotFound) as caught:
        fetch_from_web("tiny", url, lambda *_: None)
    assert web_files() == {}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fetch(url: str) -> bytes:
    path = fetch_from_web("tiny", url, lambda *_: None)
    assert web_files() == {url: path}
    assert not list(path.parent.glob("*.incomplete"))
    return path.read_bytes()


def parts(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_file_is_kept_under_its_address(url: str, hub: HubServer, tmp_path: Path) -> None:
    assert fetch(url) == CONTENT
    host = f"127.0.0.1%3A{hub.server_port}"
    assert web_path(url) == tmp_path / "cache" / "models" / "http" / host / "models" / "tiny.gguf"
    hub.seen.clear()
    assert fetch(url) == CONTENT
    assert all(seen.start == 0 for seen in hub.seen)


def test_a_redirect_is_followed_and_the_file_kept_under_the_address_asked_for(hub: HubServer) -> None:
    hub.files["/real.gguf"] = CONTENT
    hub.redirects["/download/tiny.gguf"] = f"http://localhost:{hub.server_port}/real.gguf"
    hub.faults.cut_after, hub.faults.n_cuts = 500_000, 2
    url = f"{hub.url}/download/tiny.gguf"
    assert fetch(url) == CONTENT
    assert fetch_from_web("tiny", url, lambda *_: None) == web_path(url)


def test_redirects_in_a_circle_are_told(hub: HubServer) -> None:
    hub.redirects["/a.gguf"] = "/a.gguf"
    assert "127.0.0.1 cannot be reached: " in (error := fetch_error(f"{hub.url}/a.gguf"))
    assert "redirects" in error


def test_a_full_disk_keeps_what_has_come(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: _PartFile, chunk: bytes) -> None:
        if self.n_bytes > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, chunk)

    append = _PartFile.append
    with monkeypatch.context() as context:
        context.setattr(_PartFile, "append", refuse)
        error = fetch_error(url)
    assert "No space left on device; what is here so far is kept; make room, or set VKLLM_CACHE" in error
    assert parts(tmp_path)[0].stat().st_size > 500_000
    assert fetch(url) == CONTENT


def test_the_query_and_letters_in_other_spelling_do_not_make_another_file() -> None:
    plain = web_path("https://example.org/a%20b/c.gguf")
    assert plain.name == "c.gguf" and plain.parent.name == "a b"
    assert web_path("https://example.org/a b/c.gguf?download=true") == plain
    assert web_path("https://user:secret@example.org/a b/c.gguf") == plain


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/",
        "https://example.org",
        "https://example.org/model.bin",
        "https:///model.gguf",
        "https://example.org/../../model.gguf",
        "https://example.org/%2e%2e/model.gguf",
        "https://example.org/a%2f..%2fmodel.gguf",
        "https://example.org//model.gguf",
        "https://example.org:port/model.gguf",
        "https://[model.gguf",
    ],
)
def test_addresses_that_cannot_be_a_models_are_refused(url: str) -> None:
    with pytest.raises(ModelNotFound, match="address"):
        web_path(url)


def test_a_cut_and_a_second_attempt_go_on_where_it_stopped(url: str, hub: HubServer, tmp_path: Path) -> None:
    hub.faults.cut_after, hub.faults.n_cuts = 500_000, 2
    assert fetch(url) == CONTENT
    assert [seen.start for seen in hub.seen] == [0, 0, 500_000]


def test_a_download_that_breaks_off_goes_on_later(url: str, hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch_from_web("tiny", url, stop_at(500_000))
    n_kept = parts(tmp_path)[0].stat().st_size
    assert 500_000 <= n_kept < len(CONTENT) and web_files() == {}
    hub.seen.clear()
    assert fetch(url) == CONTENT
    assert [seen.start for seen in hub.seen] == [0, n_kept]


def test_the_beginning_of_another_version_is_not_gone_on_from(url: str, hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch_from_web("tiny", url, stop_at(500_000))
    newer = b"GGUF" + CONTENT[:3:-1]
    hub.files["/models/tiny.gguf"] = newer
    assert fetch(url) == newer


def test_without_a_word_on_versions_a_second_attempt_begins_again(url: str, hub: HubServer) -> None:
    hub.faults.has_etags = False
    with pytest.raises(KeyboardInterrupt):
        fetch_from_web("tiny", url, stop_at(500_000))
    hub.seen.clear()
    assert fetch(url) == CONTENT
    assert {seen.start for seen in hub.seen} == {0}


def stop_at(n_bytes: int) -> OnProgress:
    def on_progress(_what: str, n_done: int, _total: int) -> None:
        if n_done >= n_bytes:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no such file (404)"), (401, "login (401)"), (500, "answered 500")]
)
def test_a_server_that_refuses_is_told(url: str, hub: HubServer, status: int, words: str) -> None:
    hub.faults.status = status
    assert words in fetch_error(url)
    hub.faults.status = None
    assert fetch(url) == CONTENT


def test_a_page_instead_of_a_model_is_refused_before_it_is_fetched(url: str, hub: HubServer, tmp_path: Path) -> None:
    hub.files["/models/tiny.gguf"] = b"<!DOCTYPE html>" + bytes(1000)
    assert "is not a GGUF file; check the address" in fetch_error(url)
    assert parts(tmp_path) == []
    hub.files["/models/tiny.gguf"] = CONTENT
    assert fetch(url) == CONTENT


def test_no_network_is_told_at_once(hub: HubServer) -> None:
    error = fetch_error("http://127.0.0.1:9/tiny.gguf")
    assert error.startswith("tiny could not be fetched: 127.0.0.1 cannot be reached: ")
    assert error.endswith("check the network and try again.")


def test_a_cache_that_cannot_be_written_is_told(url: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    error = fetch_error(url)
    assert f"tiny could not be fetched into {tmp_path / 'cache' / 'models'}: " in error and "set VKLLM_CACHE" in error
    (tmp_path / "cache").unlink()
    assert fetch(url) == CONTENT
