"""What the shell offers: commands, options, models and devices, in bash as it asks for them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer
from terminal import REAL, Command

from vkllm import store
from vkllm.faces.cli import completion
from vkllm.store.catalog import CatalogEntry, HubSource

REPO = "someone/tiny-GGUF"
ENTRY = CatalogEntry("tiny", "A tiny model", "MIT", 10, 20, 30, None, HubSource(REPO, "tiny.F32.gguf"))


@pytest.fixture
def models(hub: HubServer, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is here, and one of the catalogue that is not."""
    monkeypatch.setattr("vkllm.store.catalog.read_catalog", lambda: [ENTRY])
    hub.hub["someone/other"] = {"other-Q8_0.gguf": tiny_gguf.read_bytes()}
    store.pull("hf.co/someone/other")


def test_models_that_are_here_and_those_to_fetch_are_offered(models: None) -> None:
    here = ("hf.co/someone/other:Q8_0", "on this machine")
    assert completion.models("") == [("tiny", "A tiny model"), here]
    assert completion.models("hf") == completion.models_here("h") == [here]
    assert completion.models_here("t") == completion.models("x") == []


def test_what_goes_wrong_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("a broken folder")

    monkeypatch.setattr("vkllm.store.installed", fail)
    monkeypatch.setattr("vkllm.store.catalog.read_catalog", fail)
    monkeypatch.setattr("vkllm.gpu.device.probe.devices", fail)
    assert completion.models("") == completion.models_here("") == completion.devices("") == []


@pytest.fixture
def offered(tmp_path: Path) -> Callable[..., list[str]]:
    """What bash offers for the last of some words, after `vkllm --install-completion`."""
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "vkllm"
    script.write_text(f'#!/bin/sh\nexec {REAL[0]} -m vkllm "$@"\n')
    script.chmod(0o755)
    command = Command(tmp_path, HOME=str(tmp_path / "home"), VKLLM_CACHE=str(tmp_path), HF_HOME=str(tmp_path))
    command.environment["PATH"] = f"{tmp_path / 'bin'}:{command.environment['PATH']}"
    command.environment.pop("HF_ENDPOINT", None)

    def bash(line: str, *words: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line, "bash", *words],
            env=command.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout

    assert "completion installed in" in bash("vkllm --install-completion; true")

    def offer(*words: str) -> list[str]:
        return bash(
            'source ~/.bashrc; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vkllm_completion vkllm; '
            'printf "%s\\n" "${COMPREPLY[@]}"',
            *words,
        ).split()

    return offer


def test_bash_completes_commands_options_and_values(offered: Callable[..., list[str]]) -> None:
    assert offered("vkllm", "p") == ["pull", "plan", "perplexity"]
    assert offered("vkllm", "run", "x", "--json") == ["--json-schema", "--json-schema-file"]
    assert offered("vkllm", "run", "smollm2-1") == ["smollm2-1.7b"]
    assert offered("vkllm", "bench", "-m", "smollm2-1") == ["smollm2-1.7b"]
    assert offered("vkllm", "rm", "smollm2-1") == []  # not here
    assert offered("vkllm", "run", "x", "-ctk", "") == ["f16", "q8_0"]
    assert offered("vkllm", "run", "x", "--format", "") == ["json"]
    assert offered("vkllm", "run", "x", "-f", "") == []  # bash offers files then


@pytest.mark.gpu
def test_bash_completes_devices(offered: Callable[..., list[str]]) -> None:
    assert "0" in offered("vkllm", "run", "x", "--device", "")
