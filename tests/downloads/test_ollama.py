"""Models of ollama's registry: manifests and blobs from a server, what is refused before it is fetched, names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_server import OLLAMA_FACTS, HubServer

from vkllm import ModelNotFound, UnsupportedModel, plan_model
from vkllm.faces.cli.plan import lines
from vkllm.formats.gguf import ModelFile
from vkllm.resources import models_dir
from vkllm.store import find_model, headers_of, installed, local_model, pull, remove, remove_unfinished, source_of
from vkllm.store.downloads.ollama import registry_url
from vkllm.store.ollama import OllamaName

WEIGHTS = b"GGUF" + bytes(5000)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ollama:llama3.2:1b", "ollama:llama3.2:1b"),
        ("ollama://llama3.2:1b", "ollama:llama3.2:1b"),
        ("ollama:llama3.2", "ollama:llama3.2:latest"),
        ("ollama:library/llama3.2", "ollama:llama3.2:latest"),
        ("ollama:user/model:tag", "ollama:user/model:tag"),
        ("https://ollama.com/library/qwen3:4b", "ollama:qwen3:4b"),
        ("registry.ollama.ai/library/qwen3:4b", "ollama:qwen3:4b"),
        ("ollama:registry.example:5000/user/model:tag", "ollama:registry.example:5000/user/model:tag"),
        ("ollama:hf.co/o.x/r-GGUF:Q4_K_M", "ollama:hf.co/o.x/r-GGUF:Q4_K_M"),
    ],
)
def test_names_of_ollama(name: str, wanted: str) -> None:
    source = source_of(name)
    assert isinstance(source, OllamaName) and str(source) == wanted
    assert source_of(wanted) == source


@pytest.mark.parametrize(
    "name",
    [
        "ollama:",
        "ollama:a/../b",
        "ollama:a:b:c",
        "ollama:host/a/b",
        "ollama:-x",
        "ollama:../x",
        "ollama:a b",
        "https://ollama.com/library/a/tags",
    ],
)
def test_a_name_that_is_none_of_ollamas_is_told_how_they_are_written(name: str, hub: HubServer) -> None:
    with pytest.raises(ModelNotFound, match=r"this is no name of ollama's; write ollama:NAME:TAG"):
        find_model(name)
    assert hub.lines() == []


def test_addresses_of_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VKLLM_OLLAMA_REGISTRY", raising=False)
    assert registry_url(OllamaName("registry.ollama.ai", "library", "m", "t")) == (
        "https://registry.ollama.ai/v2/library/m"
    )
    assert registry_url(OllamaName("x.example:5000", "u", "m", "t")) == "https://x.example:5000/v2/u/m"
    monkeypatch.setenv("VKLLM_OLLAMA_REGISTRY", "mirror.example/")
    assert registry_url(OllamaName("registry.ollama.ai", "u", "m", "t")) == "https://mirror.example/v2/u/m"
    assert registry_url(OllamaName("x.example", "u", "m", "t")) == "https://x.example/v2/u/m"


def test_a_model_is_fetched_once_listed_and_removed(hub: HubServer) -> None:
    hub.add_ollama("library/m", "1b", WEIGHTS)
    hub.add_ollama("library/m", "latest", WEIGHTS)
    assert local_model("ollama:m:1b") is None
    path = find_model("ollama:m:1b")
    assert path.read_bytes() == WEIGHTS and path.is_relative_to(models_dir())
    assert not [line for line in hub.lines() if "template" in line or "params" in line] and len(hub.lines()) == 3
    hub.seen.clear()
    assert find_model("ollama:m:1b") == local_model("ollama:m:1b") == pull("ollama:m:1b") == path
    assert hub.lines() == []
    assert pull("ollama:m") == path
    first, second = installed()
    assert (first.name, first.quantization, first.n_bytes) == ("ollama:m:1b", "Q8_0", len(WEIGHTS))
    assert (second.name, second.tool) == ("ollama:m:latest", None)
    remove(first)
    assert [model.name for model in installed()] == ["ollama:m:latest"] and path.exists(), "both have this file"
    remove(second)
    files = [left for left in models_dir().rglob("*") if left.is_file() and left.suffix != ".lock"]
    assert installed() == [] and files == []


def test_a_download_goes_on_where_it_broke_off_and_is_checked(hub: HubServer) -> None:
    manifest = hub.add_ollama("library/m", "1b", WEIGHTS)
    hub.faults.cut_after = 1000
    hub.faults.n_cuts = 1
    assert pull("ollama:m:1b").read_bytes() == WEIGHTS
    assert [seen.start for seen in hub.seen if "blobs" in seen.line][1:] == [0, 1000]
    remove(installed()[0])
    hub.files[f"/v2/library/m/blobs/{manifest['layers'][0]['digest']}"] = WEIGHTS[:-1] + b"x"
    with pytest.raises(ModelNotFound, match=r"ollama:m:1b: the download is not the published file \(its sha256 diff"):
        pull("ollama:m:1b")
    assert installed() == [] and local_model("ollama:m:1b") is None and remove_unfinished("ollama:m:1b") == 0
    hub.faults.n_cuts = -1
    with pytest.raises(KeyboardInterrupt):
        pull("ollama:m:1b", on_progress=stop)
    assert remove_unfinished("ollama:m:1b") == 1000 and remove_unfinished("ollama:m:1b") == 0


def stop(_what: str, n_done: int, _total: int) -> None:
    if n_done:
        raise KeyboardInterrupt


def test_an_unknown_model_or_tag_is_told_in_one_sentence(hub: HubServer) -> None:
    hub.add_ollama("library/m", "1b", WEIGHTS)
    with pytest.raises(ModelNotFound) as caught:
        pull("ollama:m:2b")
    assert str(caught.value) == (
        "ollama:m:2b: ollama's registry has no such model or tag; https://ollama.com/library/m/tags shows what it has."
    )
    with pytest.raises(ModelNotFound, match=r"ollama\.com/user/m/tags shows"):
        pull("ollama:user/m")


def test_a_model_of_hugging_face_is_told_its_name(hub: HubServer) -> None:
    for name, ours in (("o/r:Q4_K_M", "hf.co/o/r:Q4_K_M"), ("o/r", "hf.co/o/r")):
        with pytest.raises(ModelNotFound, match=f"ollama:hf.co/o/r:.* is a model of Hugging Face; write {ours}\\.$"):
            pull(f"ollama:hf.co/{name}")
    assert hub.lines() == []


@pytest.mark.parametrize(
    ("facts", "kind", "words"),
    [
        ({"remote_host": "https://ollama.com:443", "remote_model": "m"}, "license", "runs on ollama's servers only"),
        ({"model_format": "safetensors"}, "tensor", "this model is in safetensors, and vkllm runs GGUF files"),
        ({}, "tensor", "this model is in another format, and vkllm runs GGUF files"),
        (OLLAMA_FACTS, "adapter", "it is an adapter"),
        (OLLAMA_FACTS, "license", "it has 0 files of weights"),
    ],
)
def test_what_is_no_gguf_model_is_refused_before_it_is_fetched(
    hub: HubServer, facts: dict[str, Any], kind: str, words: str
) -> None:
    manifest = hub.add_ollama("library/m", "x", WEIGHTS, facts, kind)
    with pytest.raises(UnsupportedModel, match=f"^ollama:m:x: .*{words}"):
        pull("ollama:m:x")
    assert not hub.lines(f"GET /v2/library/m/blobs/{manifest['layers'][0]['digest']}")


@pytest.mark.parametrize("by_reference", [False, True])
def test_of_a_list_of_manifests_the_one_of_a_gguf_is_taken(hub: HubServer, by_reference: bool) -> None:
    mlx = {"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "runner": "mlx", "digest": "sha256:0"}
    child = hub.add_ollama("library/m", "x", WEIGHTS) | {"runner": "ollama", "format": "gguf"}
    if by_reference:
        blob = hub.add_ollama_blob("library/m", json.dumps(child).encode(), "x")
        child = {"mediaType": mlx["mediaType"], "runner": "ollama", "digest": blob["digest"]}
    document = {"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": [mlx, child]}
    hub.files["/v2/library/m/manifests/x"] = json.dumps(document).encode()
    assert pull("ollama:m:x").read_bytes() == WEIGHTS
    assert find_model("ollama:m:x").read_bytes() == WEIGHTS
    document["manifests"] = [mlx]
    hub.files["/v2/library/m/manifests/y"] = json.dumps(document).encode()
    with pytest.raises(UnsupportedModel, match="in another format"):
        pull("ollama:m:y")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"layers": 1}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x", "size": 1}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:%s", "size": -1}]}'
        % (b"0" * 64),
        b"[" * 10_000,
    ],
)
def test_an_answer_that_is_no_manifest_is_told(hub: HubServer, data: bytes) -> None:
    hub.files["/v2/library/m/manifests/x"] = data
    with pytest.raises(ModelNotFound, match=r"^ollama:m:x: what its name stands for is no manifest"):
        pull("ollama:m:x")


def test_a_configuration_with_another_sha256_is_refused(hub: HubServer) -> None:
    manifest = hub.add_ollama("library/m", "x", WEIGHTS)
    hub.files[f"/v2/library/m/blobs/{manifest['config']['digest']}"] = b"{}"
    with pytest.raises(ModelNotFound, match="its sha256 differs"):
        pull("ollama:m:x")


@pytest.mark.gpu
def test_a_model_is_planned_from_its_header(hub: HubServer, tiny_gguf: Path) -> None:
    hub.add_ollama("library/m", "x", tiny_gguf.read_bytes())
    made = plan_model("ollama:m:x", n_ctx=128, measures=False)
    assert made.plan == plan_model(tiny_gguf, n_ctx=128, measures=False).plan
    assert made.missing_bytes == tiny_gguf.stat().st_size and installed() == []
    assert lines(made, "ollama:m:x")[0] == f"ollama:m:x on {made.device_name}"
    with headers_of("ollama:m:x") as headers:
        assert ModelFile.open(headers.path, headers.whole_bytes).tensors == ModelFile.open(tiny_gguf).tensors
