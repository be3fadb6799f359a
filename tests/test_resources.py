"""Finding and fetching models: from a wheel by pip and from a hub, both on local stand-ins, with every way to fail."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vkllm import resources
from vkllm.errors import ModelNotFound, VkllmError
from vkllm.resources import CatalogEntry, HubSource, WheelSource, find_model, local_path, models_dir

CONTENT = bytes(range(256)) * 4096
ENTRY = CatalogEntry(
    name="tiny",
    description="a megabyte",
    licence="none",
    n_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    source=WheelSource("tiny-model==1.0", "tiny_model/tiny.gguf"),
)
HUB_ENTRY = replace(ENTRY, sha256=None, source=HubSource("someone/tiny-GGUF", "tiny.gguf"))


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and a catalogue of one model."""
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(resources, "catalog", lambda: [ENTRY])
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
        resources, "_download_wheel", lambda _entry, _source, folder, _progress: Path(shutil.copy(wheel, folder))
    )
    return wheel


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setattr(resources, "_download_wheel", refuse)


# --- the catalogue and the shaders -----------------------------------------------------------------------------------


def test_the_catalogue_is_complete_and_pinned() -> None:
    entries = resources.catalog()
    assert len({entry.name for entry in entries}) == len(entries) > 1
    assert entries[0].name == "smollm2"
    for entry in entries:
        assert entry.description and entry.licence and entry.n_bytes > 0
        if isinstance(entry.source, WheelSource):
            assert "==" in entry.source.requirement
            assert entry.sha256 is not None and len(entry.sha256) == 64


def test_catalogue_and_shaders_are_read_from_an_installed_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spv").mkdir()
    (tmp_path / "spv" / "add.spv").write_bytes(b"\x03\x02\x23\x07")
    (tmp_path / "catalog.toml").write_text(
        '[one]\ndescription = "d"\nlicence = "l"\nn_bytes = 1\nrepo = "a/b"\nfile = "c.gguf"\n'
    )
    monkeypatch.setattr(resources, "_SHIPPED", tmp_path)
    assert resources.shader("add") == b"\x03\x02\x23\x07"
    assert resources.catalog() == [CatalogEntry("one", "d", "l", 1, None, HubSource("a/b", "c.gguf"))]


def test_shaders_are_read_from_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shaders" / "spv").mkdir(parents=True)
    (tmp_path / "shaders" / "spv" / "add.spv").write_bytes(b"\x03\x02\x23\x07")
    monkeypatch.setattr(resources, "_CHECKOUT", tmp_path)
    assert resources.shader("add") == b"\x03\x02\x23\x07"
    with pytest.raises(VkllmError, match="shader 'subtract' cannot be read"):
        resources.shader("subtract")


def test_the_wheel_ships_what_the_code_looks_for() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert shipped == {"models/catalog.toml": "vkllm/_shipped/catalog.toml", "shaders/spv": "vkllm/_shipped/spv"}


# --- folders and paths -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has LOCALAPPDATA instead")
def test_the_cache_folder_is_the_first_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("VKLLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert resources.cache_dir() == Path("/home/someone/.cache/vkllm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    assert resources.cache_dir() == Path("/var/cache/someone/vkllm")
    monkeypatch.setenv("VKLLM_CACHE", "~/models")
    assert resources.cache_dir() == Path("/home/someone/models")
    assert models_dir() == Path("/home/someone/models/models")


def test_a_path_or_a_folder_with_one_model_is_found(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").touch()
    with pytest.raises(ModelNotFound, match=r"folder: there is no \.gguf file"):
        find_model(str(folder))
    (folder / "b.gguf").touch()
    assert find_model(str(folder)) == folder / "b.gguf"
    assert find_model(str(folder / "b.gguf")) == folder / "b.gguf"
    (folder / "a.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"2 models in this folder; choose one of a\.gguf, b\.gguf"):
        find_model(str(folder))


def test_an_unknown_name_lists_the_known_ones(cache: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no model 'gtp'; known names are tiny, .*path of a \.gguf"):
        find_model("gtp")


@pytest.mark.parametrize("name", ["missing.gguf", "missing/model", "/missing/model.gguf"])
def test_a_missing_path_is_named(cache: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match=f"^{name}: no such file"):
        find_model(name)


# --- out of a wheel --------------------------------------------------------------------------------------------------


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

    monkeypatch.setattr(resources, "_is_as_published", refuse)
    assert find_model("tiny") == path


def test_a_whole_file_without_a_mark_is_checked_and_kept(cache: Path, no_network: None) -> None:
    models_dir().mkdir(parents=True)
    path = models_dir() / "tiny.gguf"
    path.write_bytes(CONTENT)
    assert local_path(ENTRY) is None
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
    with pytest.raises(ModelNotFound, match=r"tiny needs 2 MB in .*, and 1 MB are free; make room"):
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


# --- over HTTP -------------------------------------------------------------------------------------------------------


STALL_S = 12.0


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, as a package index's link page and as a hub's resolve endpoint."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.breaks_off = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """HEAD and GET with etag and range; stalls before the file or breaks off in its middle where the server says so."""

    server: Server

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.path == "/links/":
            body, kind = b'<a href="/tiny_model-1.0-py3-none-any.whl">tiny</a>', "text/html"
        elif self.path in ("/tiny_model-1.0-py3-none-any.whl", "/someone/tiny-GGUF/resolve/main/tiny.gguf"):
            body, kind = self.server.content, "application/octet-stream"
        else:
            self.send_error(404)
            return
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if not with_body:
            return
        if kind != "text/html":
            self.server.may_go_on.wait(STALL_S)
        if self.server.breaks_off and kind != "text/html":
            self.wfile.write(body[start : (start + len(body)) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(CONTENT)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.may_go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_wheel_whose_download_breaks_off_is_refused_and_fetched_again(
    cache: Path, index: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = write_wheel(index).read_bytes()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{server.url}/links/")
    server.breaks_off = True
    with pytest.raises(ModelNotFound, match=r"tiny could not be fetched|damaged"):
        find_model("tiny")
    assert any(request.endswith(".whl") for request in server.requests)
    assert files_in(cache) == []
    server.breaks_off = False
    assert find_model("tiny").read_bytes() == CONTENT


def test_an_interrupt_stops_pip_at_once_and_leaves_nothing(
    cache: Path, index: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = write_wheel(index).read_bytes()
    server.may_go_on.clear()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{server.url}/links/")

    def interrupt_during_download(*_step: object) -> None:
        if any(request.endswith(".whl") for request in server.requests):
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        find_model("tiny", on_progress=interrupt_during_download)
    assert time.monotonic() - start < 0.5 * STALL_S
    assert files_in(cache) == []


FIND_ON_HUB = """
import json, sys
from pathlib import Path
from vkllm import resources
from vkllm.errors import ModelNotFound
fields = json.loads(sys.argv[1])
entry = resources.CatalogEntry(**fields | {"source": resources.HubSource(**fields["source"])})
resources.catalog = lambda: [entry]
steps = []
try:
    path = str(resources.find_model(entry.name, on_progress=lambda *step: steps.append(step)))
except ModelNotFound as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({"path": path, "steps": steps}))
"""


def find_on_hub(server: Server, tmp_path: Path, entry: CatalogEntry = HUB_ENTRY) -> dict[str, str]:
    """Calls find_model in a process of its own, since huggingface_hub reads its environment when imported."""
    assert isinstance(entry.source, HubSource)
    fields = vars(entry) | {"source": vars(entry.source)}
    env = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hub"),
        "VKLLM_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
    }
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        env.pop(name, None)
    command = [sys.executable, "-c", FIND_ON_HUB, json.dumps(fields)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    result: dict[str, str] = json.loads(done.stdout)
    return result


def test_a_model_is_fetched_from_the_hub_once(server: Server, tmp_path: Path) -> None:
    found = find_on_hub(server, tmp_path)
    assert Path(found["path"]).read_bytes() == CONTENT
    assert found["steps"][-1] == ["fetching tiny", len(CONTENT), len(CONTENT)]
    server.requests.clear()
    assert find_on_hub(server, tmp_path) == {"path": found["path"], "steps": []}
    assert server.requests == []


def test_a_hub_download_that_breaks_off_is_an_error_and_goes_on_later(server: Server, tmp_path: Path) -> None:
    server.breaks_off = True
    found = find_on_hub(server, tmp_path)
    assert "tiny could not be fetched: tiny.gguf of someone/tiny-GGUF" in found["error"]
    assert "\n" not in found["error"]
    server.breaks_off = False
    assert Path(find_on_hub(server, tmp_path)["path"]).read_bytes() == CONTENT


def test_a_missing_hub_file_is_an_error(server: Server, tmp_path: Path) -> None:
    entry = replace(HUB_ENTRY, source=HubSource("someone/tiny-GGUF", "other.gguf"))
    assert "tiny could not be fetched: other.gguf of someone/tiny-GGUF" in find_on_hub(server, tmp_path, entry)["error"]


def test_a_hub_file_with_a_wrong_sha256_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    entry = replace(HUB_ENTRY, sha256="0" * 64)
    assert "its sha256 differs" in find_on_hub(server, tmp_path, entry)["error"]
    assert not [
        path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.stat().st_size >= len(CONTENT)
    ]
    assert not list((tmp_path / "hub").rglob("tiny.gguf"))
    entry = replace(HUB_ENTRY, sha256=ENTRY.sha256)
    assert Path(find_on_hub(server, tmp_path, entry)["path"]).read_bytes() == CONTENT
