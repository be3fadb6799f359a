"""Vocabularies for the tests of text: tiny ones made here, and real ones where their files are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_vocabularies import MakeMetadata, tiny_bpe, tiny_spm, write_gguf

from vkllm.formats.gguf import Metadata, ModelFile
from vkllm.store import local_path
from vkllm.store.catalog import catalog
from vkllm.text.tokenizer import Tokenizer
from vkllm.time_limit import TimeLimit

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grammars at the limits of their sizes may take longer than a second on a busy machine."""
    monkeypatch.setattr("vkllm.text.grammar._LIMIT", TimeLimit(60))


@pytest.fixture
def make_metadata(tmp_path: Path) -> MakeMetadata:
    return lambda fields: write_gguf(tmp_path / "vocabulary.gguf", fields)


@pytest.fixture(scope="session")
def spm_metadata(tmp_path_factory: pytest.TempPathFactory) -> Metadata:
    return write_gguf(tmp_path_factory.mktemp("spm") / "spm.gguf", tiny_spm())


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_gguf(write_gguf(tmp_path_factory.mktemp("bpe") / "bpe.gguf", tiny_bpe()))


@pytest.fixture(scope="session")
def spm(spm_metadata: Metadata) -> Tokenizer:
    return Tokenizer.from_gguf(spm_metadata)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the vocabularies and golden answers of ../shared are not here")
    return SHARED


@pytest.fixture(scope="session")
def smollm2() -> Metadata:
    path = next(local_path(entry) for entry in catalog() if entry.name == "smollm2")
    if path is None:
        pytest.skip("the default model is not on disk; make run fetches it")
    return ModelFile.open(path).metadata
