"""What comes with vkllm: the catalogue, the shaders, and where the cache is."""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path

import pytest

from vkllm import resources
from vkllm.errors import VkllmError
from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import FAMILIES, model_spec
from vkllm.resources import models_dir
from vkllm.store import quantization_of
from vkllm.store.catalog import CatalogEntry, HubSource, WheelSource, catalog, entry_of, read_catalog

# Of whole files. Q4_K_M mixes 4.5 bits with 6.6; a vocabulary that is large for its model makes it more.
BITS_PER_PARAMETER = {
    "MXFP4": (4.3, 4.7),
    "Q4_0": (4.6, 7.2),
    "Q4_1": (5.0, 6.0),
    "Q4_K_M": (4.7, 6.5),
    "Q8_0": (8.5, 8.7),
    "UD-Q4_K_M": (4.7, 6.5),
}


def test_the_catalogue_is_complete_and_pinned() -> None:
    entries = catalog()
    names = [name for entry in entries for name in (entry.name, *entry.aliases)]
    assert len(set(names)) == len(names) and len(entries) >= 80
    assert len({entry.source for entry in entries}) == len(entries)
    assert entries[0].name == "smollm2"
    first = entries[0].family
    places = [(entry.family != first, entry.family.lower(), entry.n_params) for entry in entries]
    assert places == sorted(places), "by family, and by size in a family"
    for entry in entries:
        assert entry.description and entry.licence
        if isinstance(entry.source, WheelSource):
            assert "==" in entry.source.requirement
            assert entry.sha256 is not None and len(entry.sha256) == 64
        else:
            assert entry.source.repo.count("/") == 1 and entry.source.file.endswith(".gguf")


def test_the_catalogue_has_models_of_all_families_and_of_none_that_does_not_run() -> None:
    of = [entry.architecture for entry in catalog()]
    assert set(of) == set(FAMILIES)
    assert of.count("llama") < len(of) / 3
    assert min(entry.n_params for entry in catalog()) < 3e8 and max(entry.n_params for entry in catalog()) > 7e10


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("qwen3-4b", "qwen3-4b"),
        ("qwen3:4b", "qwen3-4b"),
        ("Qwen3-4B", "qwen3-4b"),
        ("qwen3", "qwen3-8b"),
        ("qwen3:latest", "qwen3-8b"),
        ("qwen2.5-coder:7b", "qwen2.5-coder-7b"),
        ("qwen2.5:0.5b", "qwen2.5-0.5b"),
        ("llama3.2", "llama-3.2-3b"),
        ("llama3.2:1b", "llama-3.2-1b"),
        ("gemma3:27b", "gemma-3-27b"),
        ("gemma3:4b-it-qat", "gemma-3-4b-qat"),
        ("phi4", "phi-4"),
        ("phi4-mini", "phi-4-mini"),
        ("mistral-nemo", "mistral-nemo-12b"),
        ("deepseek-r1:8b", "deepseek-r1-0528-8b"),
        ("deepseek-r1-8b", "deepseek-r1-8b"),
        ("qwen3:30b", "qwen3-30b-a3b"),
        ("qwen3:30b-a3b", "qwen3-30b-a3b"),
        ("gpt-oss", "gpt-oss-20b"),
        ("mixtral:8x7b", "mixtral-8x7b"),
        ("qwen3.5", "qwen3.5-9b"),
        ("qwen3.6", "qwen3.6-35b-a3b"),
        ("qwen3.8:27b", "qwen3.8-27b"),
        ("gemma4", "gemma-4-e4b"),
        ("gemma4:26b", "gemma-4-26b-a4b"),
        ("glm-4.7-flash", "glm-4.7-flash"),
        ("granite4:tiny-h", "granite-4.0-h-tiny"),
        ("nemotron-3-nano:30b", "nemotron-3-nano-30b-a3b"),
        ("qwen3-coder-next", "qwen3-coder-next"),
        ("smollm2:135m", "smollm2"),
        ("SmolLM2:latest", "smollm2"),
    ],
)
def test_models_of_the_catalogue_have_the_names_that_ollama_gives_them(name: str, entry: str) -> None:
    found = entry_of(name)
    assert found is not None and found.name == entry


@pytest.mark.parametrize("name", ["qwen3:5b", "qwen", "llama3.2:1b-instruct-q8_0", "", "4b"])
def test_other_names_are_not_taken_for_a_model_of_the_catalogue(name: str) -> None:
    assert entry_of(name) is None


def test_the_catalogues_figures_fit_each_other() -> None:
    for entry in catalog():
        quantization = quantization_of(
            entry.source.member if isinstance(entry.source, WheelSource) else entry.source.file
        )
        assert quantization in BITS_PER_PARAMETER, entry.name
        least, most = BITS_PER_PARAMETER[quantization]
        assert least <= 8 * entry.n_bytes / entry.n_params <= most, entry.name
        # A cache of 4096 tokens and the activations: 80 MB or more, and never as much again as the largest weights.
        assert 80e6 < entry.memory_bytes - entry.n_bytes < 4e9, entry.name


@pytest.mark.weights
def test_the_default_models_figures_are_those_of_its_file(default_model: Path) -> None:
    entry = catalog()[0]
    file = ModelFile.open(default_model)
    assert entry.n_params == sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    assert entry.n_bytes == default_model.stat().st_size
    spec = model_spec(file.metadata, file.tensors)
    least = (
        sum(tensor.n_bytes for tensor in file.tensors.values())
        + 4 * 4096 * spec.n_layers * spec.n_kv_heads * spec.head_dim
    )
    assert least < entry.memory_bytes < 1.3 * least


def test_catalogue_and_shaders_are_read_from_an_installed_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spv").mkdir()
    (tmp_path / "spv" / "add.spv").write_bytes(b"\x03\x02\x23\x07")
    (tmp_path / "catalog.toml").write_text(
        '[one]\nfamily = "f"\narchitecture = "a"\ndescription = "d"\nlicence = "l"\n'
        "n_params = 3\nn_bytes = 1\nmemory_bytes = 2\n"
        'repo = "a/b"\nfile = "c.gguf"\n'
    )
    monkeypatch.setattr(resources, "_SHIPPED", tmp_path)
    assert resources.shader("add") == b"\x03\x02\x23\x07"
    read_catalog.cache_clear()
    try:
        assert catalog() == [CatalogEntry("one", "d", "l", 3, 1, 2, None, HubSource("a/b", "c.gguf"), "f", "a")]
    finally:
        read_catalog.cache_clear()


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
