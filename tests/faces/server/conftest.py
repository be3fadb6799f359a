"""A server that several tests share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, serving, single

from vkllm.engine.process.handle import EngineProcess


@pytest.fixture(scope="module")
def fake_engines() -> Iterator[None]:
    """All models that are loaded have the engine that echoes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vkllm.api.loading.EngineProcess", functools.partial(EngineProcess, factory="fake_engine:FakeEngine")
        )
        yield


@pytest.fixture(scope="module")
def served(tiny_gguf: Path, fake_engines: None) -> Iterator[Served]:
    """A server of one tiny model that answers with the prompt from its second token on."""
    with serving(single(tiny_gguf)) as server:
        yield server
