"""Names of models: what each stands for, which are here, which part of a repository is meant, fetching and removing."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import HubServer

from vkllm.errors import ModelNotFound, UnsupportedModel, VkllmError
from vkllm.resources import cache_dir, models_dir
from vkllm.store import (
    HubRepo,
    WebSource,
    find_model,
    installed,
    local_model,
    pull,
    quantization_of,
    remove,
    remove_unfinished,
    source_of,
)
from vkllm.store.catalog import CatalogEntry, HubSource, WheelSource
from vkllm.store.downloads.checks import mark_path

REPO = "someone/tiny-GGUF"
HUB_ENTRY = CatalogEntry("tiny", "on a hub", "MIT", 10, 20, 30, None, HubSource(REPO, "tiny.Q8_0.gguf"))
WHEEL_ENTRY = CatalogEntry("packed", "in a wheel", "MIT", 10, 20, 30, "0" * 64, WheelSource("p==1", "p/packed.gguf"))


def content(name: str) -> bytes:
    return b"GGUF" + name.encode() * 100


@pytest.fixture(autouse=True)
def tiny(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub with one repository, and a catalogue with one model of it."""
    monkeypatch.setattr("vkllm.store.catalog.read_catalog", lambda: [HUB_ENTRY, WHEEL_ENTRY])
    add(hub, "tiny.Q8_0.gguf", "tiny.Q4_K_M.gguf", "tiny.Q4_0_4_4.gguf", "mmproj-tiny-F16.gguf")


def add(hub: HubServer, *names: str, repo: str = REPO) -> None:
    hub.hub.setdefault(repo, {}).update({name: content(name) for name in names})


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tiny", HUB_ENTRY),
        ("hf.co/o/r", HubRepo("o/r", None)),
        ("hf.co/o/r:Q4_K_M", HubRepo("o/r", "Q4_K_M")),
        ("huggingface.co/o.x/r-1.5_b:q8_0", HubRepo("o.x/r-1.5_b", "q8_0")),
        ("https://huggingface.co/o/r", HubRepo("o/r", None)),
        ("https://huggingface.co/o/r/", HubRepo("o/r", None)),
        ("hf:o/r", HubRepo("o/r", None)),
        ("hf:o/r/f.gguf", HubSource("o/r", "f.gguf")),
        ("hf:o/r/folder/f-00001-of-00002.gguf", HubSource("o/r", "folder/f-00001-of-00002.gguf")),
        ("https://huggingface.co/o/r/blob/main/f.gguf", HubSource("o/r", "f.gguf")),
        ("https://hf.co/o/r/resolve/main/a/f.gguf?download=true", HubSource("o/r", "a/f.gguf")),
        ("https://example.org/f.gguf", WebSource("https://example.org/f.gguf")),
        ("http://10.0.0.1:8000/f.gguf", WebSource("http://10.0.0.1:8000/f.gguf")),
        ("/some/path.gguf", None),
        ("o/r", None),
    ],
)
def test_what_names_stand_for(name: str, source: object) -> None:
    assert source_of(name) == source


@pytest.mark.parametrize(
    ("file", "quantization"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("tinyllama-1.1b-chat-v1.0.Q8_0.gguf", "Q8_0"),
        ("qwen2.5-7b-instruct-q5_k_m-00001-of-00002.gguf", "Q5_K_M"),
        ("Q4_0/model-Q4_0-00002-of-00003.gguf", "Q4_0"),
        ("model-fp16.gguf", "F16"),
        ("model.BF16.gguf", "BF16"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("UD-Q8_K_XL/Qwen3-8B-ud-q8_k_xl-00001-of-00002.gguf", "UD-Q8_K_XL"),
        ("BF16/model-00001-of-00002.gguf", "BF16"),
        ("model-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("model-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("model-NVFP4.gguf", "NVFP4"),
        ("model.i1-IQ3_XXS.gguf", "IQ3_XXS"),
        ("Llama-3-fp16-Q6_K_L.gguf", "Q6_K_L"),
        ("model-IQ4_NL.gguf", "IQ4_NL"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Qwen2-model.gguf", None),
        ("model.gguf", None),
    ],
)
def test_quantizations_are_read_off_file_names(file: str, quantization: str | None) -> None:
    assert quantization_of(file) == quantization


@pytest.mark.parametrize(
    "name",
    ["missing.gguf", "missing/model", "/missing/model.gguf", "/my models/missing", "my models/m.gguf", "~/no such/x"],
)
def test_a_missing_path_is_named(name: str) -> None:
    with pytest.raises(ModelNotFound, match=f"^{name}: no such file"):
        find_model(name)


def test_an_address_of_another_kind_is_told() -> None:
    with pytest.raises(ModelNotFound, match=r"^ftp://x/m\.gguf: only addresses that begin with https:// or http://"):
        find_model("ftp://x/m.gguf")


# --- Of a hub --------------------------------------------------------------------------------------------------------


def test_a_model_is_fetched_once_and_then_found_without_the_network(hub: HubServer) -> None:
    for name in ("tiny", f"hf.co/{REPO}:Q4_K_M", f"hf:{REPO}/tiny.Q4_0_4_4.gguf"):
        assert local_model(name) is None
        path = find_model(name)
        hub.seen.clear()
        assert find_model(name) == local_model(name) == path
        assert hub.lines() == []
        assert pull(name) == path
        assert hub.lines("GET /cdn/") == []


@pytest.mark.parametrize(
    ("files", "name", "chosen"),
    [
        (["a.Q4_K_M.gguf", "a.Q4_0.gguf", "a.Q8_0.gguf"], "hf.co/o/r", "a.Q4_K_M.gguf"),
        (["a.Q2_K.gguf", "a.Q4_0.gguf", "a.Q8_0.gguf"], "hf.co/o/r", "a.Q4_0.gguf"),
        (["a.Q8_0.gguf", "mmproj-a-f16.gguf", "a.imatrix.gguf"], "hf.co/o/r", "a.Q8_0.gguf"),
        (["a.gguf"], "hf.co/o/r", "a.gguf"),
        (["a.Q4_K_M.gguf", "a.q8_0.gguf"], "hf.co/o/r:Q8_0", "a.q8_0.gguf"),
        (
            ["a.Q4_K_M.gguf", "Q8_0/a-Q8_0-00001-of-00002.gguf", "Q8_0/a-Q8_0-00002-of-00002.gguf"],
            "hf.co/o/r:q8_0",
            "Q8_0/a-Q8_0-00001-of-00002.gguf",
        ),
    ],
)
def test_the_model_that_is_meant_in_a_repository(hub: HubServer, files: list[str], name: str, chosen: str) -> None:
    add(hub, *files, repo="o/r")
    assert pull(name).read_bytes() == content(chosen)
    assert find_model(name).read_bytes() == content(chosen)


@pytest.mark.parametrize(
    ("files", "name", "error", "words"),
    [
        (
            ["a.Q5_K_M.gguf", "a.Q8_0.gguf", "a.Q4_0_4_4.gguf"],
            "hf.co/o/r",
            ModelNotFound,
            "several models among a.Q5_K_M.gguf, a.Q8_0.gguf; name one, as in hf.co/o/r:Q5_K_M",
        ),
        (
            ["a.Q4_0.gguf", "b.Q4_0.gguf"],
            "hf.co/o/r:Q4_0",
            ModelNotFound,
            "several models among a.Q4_0.gguf, b.Q4_0.gguf; name one, as in hf:o/r/a.Q4_0.gguf",
        ),
        (
            ["a.Q4_0.gguf"],
            "hf.co/o/r:Q8_0",
            ModelNotFound,
            "there is no Q8_0 among a.Q4_0.gguf; name one, as in hf.co/o/r:Q4_0",
        ),
        (["a.gguf", "b.gguf"], "https://hf.co/o/r/", ModelNotFound, "name one, as in hf:o/r/a.gguf"),
        (["README.md", "model.safetensors"], "hf.co/o/r", ModelNotFound, "no GGUF files that vkllm runs"),
        (["a.IQ4_KS.gguf"], "hf.co/o/r:IQ4_KS", UnsupportedModel, "vkllm does not run IQ4_KS; take one of .* Q4_0,"),
        (["a-Q4_0-00001-of-00002.gguf"], "hf.co/o/r", ModelNotFound, "no GGUF files"),
    ],
)
def test_a_repository_without_one_model_that_is_meant(
    hub: HubServer, files: list[str], name: str, error: type[VkllmError], words: str
) -> None:
    add(hub, *files, repo="o/r")
    with pytest.raises(error, match=words):
        find_model(name)
    assert not hub.lines("GET /cdn/")


def test_a_split_model_is_here_when_all_its_parts_are(hub: HubServer) -> None:
    names = [f"big-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    add(hub, *names[:2], repo="o/big")
    with pytest.raises(ModelNotFound, match=r"hf:o/big/big-Q8_0-00001-of-00003\.gguf \(3 of 3\) could not be fetched"):
        pull(f"hf:o/big/{names[0]}")
    assert local_model(f"hf:o/big/{names[0]}") is None and installed() == []
    add(hub, names[2], repo="o/big")
    hub.seen.clear()
    path = find_model("hf.co/o/big")
    assert len(hub.lines("GET /cdn/")) == 1
    assert [path.with_name(name).read_bytes() for name in names] == [content(name) for name in names]
    (model,) = installed()
    assert model.name == "hf.co/o/big:Q8_0" and len(model.paths) == 3
    remove(model)
    assert installed() == []


def test_a_catalogue_model_with_a_sha256_is_checked(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(HUB_ENTRY, sha256="0" * 64)
    monkeypatch.setattr("vkllm.store.catalog.read_catalog", lambda: [wrong])
    with pytest.raises(ModelNotFound, match="sha256 differs"):
        find_model("tiny")
    assert local_model("tiny") is None and installed() == []


# --- At an address ---------------------------------------------------------------------------------------------------


def test_a_split_model_at_an_address_is_fetched_whole(hub: HubServer) -> None:
    paths = [f"/m/big-0000{number}-of-00002.gguf" for number in (1, 2)]
    hub.files |= {path: content(path) for path in paths}
    url = hub.url + paths[0]
    assert local_model(url) is None
    assert find_model(url) == local_model(url)
    (model,) = installed()
    assert model.name == url
    assert [path.read_bytes() for path in model.paths] == [content(path) for path in paths]
    remove(model)
    assert installed() == [] and local_model(url) is None


# --- What is here ----------------------------------------------------------------------------------------------------


def test_installed_models_have_names_that_find_them(hub: HubServer) -> None:
    hub.files["/w.gguf"] = content("w")
    for name in ("tiny", f"hf.co/{REPO}:Q4_K_M", f"{hub.url}/w.gguf"):
        pull(name)
    models = installed()
    assert [model.name for model in models] == ["tiny", f"hf.co/{REPO}:Q4_K_M", f"{hub.url}/w.gguf"]
    assert [model.quantization for model in models] == ["Q8_0", "Q4_K_M", None]
    assert [model.last_used_s for model in models] == [None] * 3
    hub.seen.clear()
    for model in models:
        assert find_model(model.name) == model.paths[0]
        assert model.n_bytes == model.paths[0].stat().st_size
    assert hub.lines() == []
    now = time.time()
    assert all(model.last_used_s is not None and abs(now - model.last_used_s) < 60 for model in installed())


def test_a_cache_copied_without_times_is_listed_and_used_without_the_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content("packed")
    entry = replace(WHEEL_ENTRY, n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr("vkllm.store.catalog.read_catalog", lambda: [entry])
    models_dir().mkdir(parents=True)
    path = models_dir() / "packed.gguf"
    path.write_bytes(data)
    mark_path(entry).write_text(f"{entry.sha256} {len(data)} 12345\n")  # of another time
    hub.files["/w.gguf"] = content("w")
    pull(f"hf.co/{REPO}:Q4_K_M"), pull(f"{hub.url}/w.gguf")
    for file in (*cache_dir().rglob("*"), *(tmp_path / "hub").rglob("*")):
        os.utime(file, (1, 1))
    assert [model.name for model in installed()] == ["packed", f"hf.co/{REPO}:Q4_K_M", f"{hub.url}/w.gguf"]
    assert find_model("packed") == path and mark_path(entry).read_text().endswith(f"{path.stat().st_mtime_ns}\n")
    mark_path(entry).unlink()
    assert local_model("packed") == path, "nor does it need its mark"
    path.write_bytes(b"X" * len(data))
    assert local_model("packed") is None and next(iter(installed())).name != "packed"


def test_odd_files_in_the_caches_do_not_hide_the_models(hub: HubServer, tmp_path: Path) -> None:
    pull("tiny")
    hub.files["/w.gguf"] = content("w")
    web = pull(f"{hub.url}/w.gguf")
    snapshot = next((tmp_path / "hub").rglob("tiny.Q8_0.gguf")).parent
    for folder in (web.parent, web.parent.parent, snapshot, models_dir()):
        (folder / "broken.gguf").symlink_to(folder / "nothing")
        (folder / "folder.gguf").mkdir()
        (folder / "half-00001-of-00002.gguf").write_bytes(b"GGUF")
        (folder / "x.gguf.incomplete").touch()
    (web.parent.parent / "top.gguf").touch()
    for name in ("models--", "models--x", "models--a--b--c", "datasets--a--b", "file"):
        (tmp_path / "hub" / name).mkdir()
    (tmp_path / "hub" / "models--d--e").touch()
    (tmp_path / "hub" / "models--f--g" / "refs" / "main").mkdir(parents=True)
    assert [model.name for model in installed()] == ["tiny", f"{hub.url}/w.gguf"]


def test_two_models_of_one_quantization_are_named_by_their_files(hub: HubServer) -> None:
    add(hub, "a.Q4_0.gguf", "b.Q4_0.gguf", repo="o/r")
    names = ["hf:o/r/a.Q4_0.gguf", "hf:o/r/b.Q4_0.gguf"]
    for name in names:
        pull(name)
    assert [model.name for model in installed()] == names


def test_removing_deletes_a_model_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    hub.files["/w.gguf"] = content("w")
    for name in ("tiny", f"hf.co/{REPO}:Q4_K_M", f"{hub.url}/w.gguf"):
        find_model(name)
    models = installed()
    for number, model in enumerate(models):
        remove(model)
        assert installed() == models[number + 1 :]
    files = [path for path in (*cache_dir().rglob("*"), *(tmp_path / "hub").rglob("*")) if path.is_file()]
    assert [path for path in files if path.suffix not in (".lock", ".TAG")] == []


def test_removing_a_model_of_a_wheel_takes_its_mark_too() -> None:
    models_dir().mkdir(parents=True)
    path = models_dir() / "packed.gguf"
    path.write_bytes(b"GGUF")
    mark_path(WHEEL_ENTRY).write_text(f"{'0' * 64} 4 {path.stat().st_mtime_ns}\n")
    (model,) = installed()
    assert model.name == "packed"
    remove(model)
    assert list(models_dir().iterdir()) == []


def unfinished(tmp_path: Path) -> list[str]:
    found = [*(tmp_path / "cache").rglob("*"), *(tmp_path / "hub").rglob("*")]
    return [path.name for path in found if path.is_file() and path.suffix not in (".lock", ".TAG")]


def stop(_what: str, n_done: int, _total: int) -> None:
    if n_done:
        raise KeyboardInterrupt


def test_what_an_unfinished_download_left_can_be_removed(hub: HubServer, tmp_path: Path) -> None:
    hub.files["/w.gguf"] = content("w")
    for name in ("tiny", f"hf.co/{REPO}:Q4_K_M", f"hf:{REPO}/tiny.Q4_K_M.gguf", f"{hub.url}/w.gguf"):
        with pytest.raises(KeyboardInterrupt):
            pull(name, on_progress=stop)
        assert installed() == [] and local_model(name) is None
        (left,) = unfinished(tmp_path)
        assert left.endswith(".incomplete")
        assert remove_unfinished(name) > 100
        assert unfinished(tmp_path) == [] and remove_unfinished(name) == 0


def test_removing_what_is_unfinished_takes_parts_of_that_model_and_no_whole_one(hub: HubServer, tmp_path: Path) -> None:
    names = [f"big-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    add(hub, names[0], "big-Q4_0.gguf", repo="o/big")
    whole = pull("hf.co/o/big:Q4_0")
    with pytest.raises(ModelNotFound):
        pull(f"hf:o/big/{names[0]}")
    assert remove_unfinished("hf.co/o/big:Q8_0") == len(content(names[0]))
    assert whole.read_bytes() == content("big-Q4_0.gguf")
    assert remove_unfinished("hf.co/o/big") == 0
    first = f"{hub.url}/m/big-00001-of-00002.gguf"
    hub.files["/m/big-00001-of-00002.gguf"] = content("one")
    with pytest.raises(ModelNotFound):
        pull(first)
    assert (
        remove_unfinished(first) == len(content("one")) and unfinished(tmp_path).count("big-00001-of-00002.gguf") == 0
    )


def test_a_name_of_nothing_unfinished_removes_nothing(tmp_path: Path) -> None:
    for name in ("packed", "hf.co/a/b", "https://example.org/x.gguf", str(tmp_path)):
        assert remove_unfinished(name) == 0


def test_a_model_that_may_not_be_deleted_is_an_error_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    find_model("tiny")
    (model,) = installed()
    with monkeypatch.context() as context:
        context.setattr(Path, "unlink", refuse)
        with pytest.raises(VkllmError, match=r"tiny could not be removed: /.*\.gguf: Permission denied"):
            remove(model)
    assert installed() == [model]
