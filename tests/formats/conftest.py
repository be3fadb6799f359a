"""The sound GGUF file, and a copy of it to damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_files import Patch, write


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "sound.gguf")


@pytest.fixture
def patch(sound: Path, tmp_path: Path) -> Patch:
    return Patch(sound, tmp_path / "damaged.gguf")
