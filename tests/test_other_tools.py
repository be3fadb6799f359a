"""Models that ollama, llama.cpp and LM Studio have fetched: found, run in place, and never deleted."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

from vkllm.errors import InvalidParameter, ModelNotFound
from vkllm.faces.cli import models as commands
from vkllm.store import InstalledModel, find_model, installed, look_up, other_tools, pull, remove
from vkllm.store.other_tools import gguf_files, llama_cpp_folders

CONTENT = b"GGUF" + bytes(100)
LM_STUDIO = "lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf"


@pytest.fixture(autouse=True)
def folders(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the folders of all programs; the catalogue is empty."""
    monkeypatch.setattr("vkllm.store.catalog.read_catalog", lambda: [])
    return tmp_path


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_ollama(folder: Path, name: str, content: bytes = CONTENT, manifests: str = "manifests") -> Path:
    """A model as ollama keeps it. name: host/namespace/model/tag."""
    facts = json.dumps({"model_format": "gguf", "file_type": "Q4_K_M"}).encode()
    layers = []
    for kind, blob in (("docker.container.image.v1+json", facts), ("ollama.image.model", content)):
        sha256 = hashlib.sha256(blob).hexdigest()
        put(folder / "blobs" / f"sha256-{sha256}", blob)
        layers.append({"mediaType": f"application/vnd.{kind}", "digest": f"sha256:{sha256}", "size": len(blob)})
    document = {"schemaVersion": 2, "config": layers[0], "layers": layers[1:]}
    put(folder / manifests / name, json.dumps(document).encode())
    return folder / "blobs" / f"sha256-{sha256}"


def listed() -> dict[str, InstalledModel]:
    return {model.name: model for model in installed()}


def test_models_of_other_programs_are_listed_and_run_in_place(hub: HubServer, folders: Path) -> None:
    paths = {
        "ollama:llama3.2:1b": put_ollama(folders / "ollama", "registry.ollama.ai/library/llama3.2/1b"),
        "ollama:user/m:latest": put_ollama(folders / "ollama", "registry.ollama.ai/user/m/latest", CONTENT + b"1"),
        "ollama:new:1b": put_ollama(
            folders / "ollama", "registry.ollama.ai/library/new/1b", CONTENT + b"2", "manifests-v2"
        ),
        "ollama:hf.co/o.x/r:Q8_0": put_ollama(folders / "ollama", "hf.co/o.x/r/Q8_0", CONTENT + b"3"),
        f"lmstudio:{LM_STUDIO}": put(folders / "lmstudio" / LM_STUDIO),
        "llama.cpp:o_r_m-Q8_0.gguf": put(folders / "llama.cpp" / "o_r_m-Q8_0.gguf"),
        "llama.cpp:o/r/a/m.gguf": put(folders / "llama.cpp" / "models--o--r" / "snapshots" / "0abc" / "a" / "m.gguf"),
    }
    found = listed()
    assert {name: model.paths for name, model in found.items()} == {name: (path,) for name, path in paths.items()}
    assert [found[name].quantization for name in paths] == [*["Q4_K_M"] * 5, "Q8_0", None]
    assert [found[name].tool for name in paths] == [*["ollama"] * 4, "LM Studio", "llama.cpp", "llama.cpp"]
    for name, path in paths.items():
        assert find_model(name) == pull(name) == path
        assert found[name].last_used_s is None and listed()[name].last_used_s is not None
    assert hub.lines() == []


def test_models_of_other_programs_are_never_deleted(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = put_ollama(folders / "ollama", "registry.ollama.ai/library/llama3.2/1b")
    lm_studio, llama_cpp = put(folders / "lmstudio" / LM_STUDIO), put(folders / "llama.cpp" / "m.gguf")
    for name, words in (
        ("ollama:llama3.2:1b", "was fetched by ollama, so vkllm does not delete it; `ollama rm llama3.2:1b` does"),
        (str(blob), "`ollama rm llama3.2:1b` does"),
        (f"lmstudio:{LM_STUDIO}", "was fetched by LM Studio, .*; delete it in LM Studio, under My Models"),
        ("llama.cpp:m.gguf", f"was fetched by llama.cpp, .*; delete {llama_cpp} yourself"),
    ):
        with pytest.raises(InvalidParameter, match=words):
            commands.remove([name], yes=True)
    for model in installed():
        with pytest.raises(InvalidParameter, match="does not delete it"):
            remove(model)
    assert blob.exists() and lm_studio.exists() and llama_cpp.exists() and len(installed()) == 3
    assert capsys.readouterr().out == ""


def test_the_list_says_which_program_has_a_model(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_ollama(folders / "ollama", "registry.ollama.ai/library/llama3.2/1b")
    put(folders / "lmstudio" / LM_STUDIO)
    commands.list_models()
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split("  ")[0] == "ollama:llama3.2:1b" and first.endswith(f"  ollama: {folders / 'ollama'}")
    assert second.endswith(f"  LM Studio: {folders / 'lmstudio' / LM_STUDIO}")
    commands.list_models(json=True)
    assert [fields["tool"] for fields in json.loads(capsys.readouterr().out)] == ["ollama", "LM Studio"]


def test_files_that_are_no_whole_models_are_left_out(folders: Path) -> None:
    cut = put_ollama(folders / "ollama", "registry.ollama.ai/library/cut/1b")
    cut.write_bytes(CONTENT[:-1])
    put(folders / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "bad" / "1b", b"{")
    put(folders / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "-x" / "1b", b"{}")
    put(folders / "ollama" / "manifests" / "file", b"{}")
    put(folders / "ollama" / "blobs" / "sha256-12-partial")
    folder = (folders / "lmstudio" / LM_STUDIO).parent
    for name in ("mmproj-x-f16.gguf", "x.imatrix.gguf", "ggml-vocab-x.gguf", "half-00001-of-00002.gguf"):
        put(folder / name)
    for name in ("downloading_x.gguf.part", "x.gguf.downloadInProgress", "x.gguf.json", "readme.md"):
        put(folder / name)
    (folder / "broken.gguf").symlink_to(folder / "nothing")
    (folder / "folder.gguf").mkdir()
    (folder / "circle").symlink_to(folders / "lmstudio")
    put(folders / "llama.cpp" / "m.gguf.downloadInProgress")
    assert installed() == []
    split = [put(folder / f"s-Q8_0-0000{n}-of-00002.gguf") for n in (1, 2)]
    (model,) = installed()
    assert model.paths == tuple(split) and model.n_bytes == 2 * len(CONTENT)
    assert find_model(model.name) == split[0]


@pytest.mark.parametrize(
    "place",
    [
        "lmstudio/o/r/m-Q8_0.gguf",
        "llama.cpp/o_r_m-Q8_0.gguf",
        "llama.cpp/models--o--r/snapshots/0abc/m-Q8_0.gguf",
        "hub/models--o--r/snapshots/0123abc/m-Q8_0.gguf",
    ],
)
def test_a_name_of_the_hub_finds_what_another_program_has_fetched(hub: HubServer, folders: Path, place: str) -> None:
    path = put(folders / place)
    for name in ("hf.co/o/r", "hf.co/o/r:q8_0", "hf:o/r/m-Q8_0.gguf"):
        assert find_model(name) == path
    assert pull("hf:o/r/m-Q8_0.gguf") == path and hub.lines() == []
    if not place.startswith("hub"):
        with pytest.raises(InvalidParameter, match="does not delete it"):
            commands.remove(["hf.co/o/r"], yes=True)
    put(folders / "llama.cpp" / "o_r_s-Q4_0-00002-of-00002.gguf")
    put(folders / "lmstudio" / "o" / "r" / "s-Q4_0-00001-of-00002.gguf")
    assert look_up("hf:o/r/s-Q4_0-00001-of-00002.gguf").path is None, "its parts are not in one folder"
    for name in ("hf.co/o/r:Q4_0", "hf.co/o/other", "hf.co/a/r"):
        assert look_up(name).path is None


def test_a_file_that_several_programs_share_is_listed_once(hub: HubServer, folders: Path) -> None:
    hub.hub["o/r"] = {"m-Q8_0.gguf": CONTENT}
    path = pull("hf.co/o/r")
    (folders / "lmstudio" / "o" / "r").mkdir(parents=True)
    (folders / "lmstudio" / "o" / "r" / "m-Q8_0.gguf").symlink_to(path)
    assert list(listed()) == ["hf.co/o/r:Q8_0"]


def test_a_name_of_what_is_not_there_says_so(folders: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"lmstudio:a/b/c\.gguf: LM Studio has no a/b/c\.gguf on this machine;"):
        look_up("lmstudio:a/b/c.gguf")
    put(folders / "x.gguf")
    for name in ("llama.cpp:../x.gguf", "lmstudio:a//x.gguf", "llama.cpp:x"):
        with pytest.raises(ModelNotFound):
            look_up(name)


def test_huge_and_unreadable_folders_do_not_stall_the_list(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_tools, "MOST_ENTRIES", 50)
    for n in range(100):
        put(folders / "lmstudio" / f"m{n}.gguf")
    assert len(gguf_files(folders / "lmstudio")) == 50
    put(folders / "llama.cpp" / "a" / "b" / "c" / "d" / "e.gguf")
    put(folders / "llama.cpp" / "a" / "b" / "c" / "d" / "e" / "f.gguf")
    assert gguf_files(folders / "llama.cpp") == ["a/b/c/d/e.gguf"]
    put(folders / "file")
    assert gguf_files(folders / "file") == gguf_files(folders / "none") == []

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    assert installed() == []


def test_where_other_programs_keep_their_models(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(folders))
    for name in ("LLAMA_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert llama_cpp_folders() == [folders / ".cache" / "llama.cpp"]
    assert other_tools.lm_studio_folders() == [
        folders / ".lmstudio" / "models",
        folders / ".cache" / "lm-studio" / "models",
    ]
    put(folders / ".lmstudio-home-pointer", f"{folders / 'moved'}\n".encode())
    put(folders / "moved" / "settings.json", json.dumps({"downloadsFolder": str(folders / "big disk")}).encode())
    put(folders / ".lmstudio" / "settings.json", b"no json")
    assert other_tools.lm_studio_folders()[:2] == [folders / "big disk", folders / ".lmstudio" / "models"]
    monkeypatch.setenv("LLAMA_CACHE", str(folders / "l"))
    assert llama_cpp_folders() == [folders / "l"]
