"""Engines of a small model, and a state that was saved by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model
from state_steps import FORMATS, PROMPT, MakeEngine, answer, save

from vkllm.engine.engine import Engine
from vkllm.errors import NoDevice
from vkllm.model.memory.plan import PlanOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", TINY_SPEC, FORMATS)


@pytest.fixture(scope="module")
def make_engine(model: Path) -> Iterator[MakeEngine]:
    made: list[Engine] = []

    def make(types: tuple[str, str] = ("f16", "f16"), n_ctx: int = 200, path: Path = model) -> Engine:
        config = replace(
            engine_config(path, TINY_SPEC, n_ctx), options=PlanOptions(*types, spec="off")
        )  # drafts round differently
        try:
            made.append(Engine(config))
        except NoDevice as error:
            pytest.skip(str(error))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(scope="module")
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def other_engine(make_engine: MakeEngine) -> Engine:
    """The same model, loaded once more."""
    return make_engine()


@pytest.fixture(scope="module")
def saved(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound state of 70 tokens and an answer."""
    path = tmp_path_factory.mktemp("saved") / "chat.npz"
    answer(engine, PROMPT)
    save(engine, path)
    return path
