"""A hub with a tiny model, a catalogue that names it, and somebody who answers questions, for tests of commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer
from tiny_gguf import write_tiny_gguf

from vkllm.store.catalog import CatalogEntry, HubSource

REPO = "someone/tiny-GGUF"
ENTRY = CatalogEntry("tiny", "A tiny model", "MIT", 10_000, 150_000, 2_000_000, None, HubSource(REPO, "tiny.F32.gguf"))

Answers = Callable[[str], list[str]]


@pytest.fixture(name="tiny_in_hub", autouse=True)
def serve_tiny(hub: HubServer, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub with a model that runs and one that does not, and a catalogue of the first."""
    monkeypatch.setattr("vkllm.store.catalog.read_catalog", lambda: [ENTRY])
    hub.hub[REPO] = {"tiny.F32.gguf": tiny_gguf.read_bytes()}
    other = write_tiny_gguf(tmp_path / "other.gguf", architecture="mamba", template=None)
    hub.hub["someone/other"] = {"other.gguf": other.read_bytes()}


@pytest.fixture(name="person")
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Somebody at a terminal who gives one answer to all questions; the list fills with the questions."""

    def answer(text: str) -> list[str]:
        questions: list[str] = []
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or text)
        return questions

    return answer
