"""Fixtures that several folders share: a tiny model with a fake engine, and the default model."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import hub, server  # noqa: F401  (fixtures)
from hypothesis import settings
from quick_choices import use_quick_choices
from tiny_gguf import write_tiny_gguf

from vkllm import LLM, ModelNotFound
from vkllm.engine.process.handle import EngineProcess
from vkllm.store import find_model

# Tests of what a device runs by default must not depend on what a developer has tuned.
os.environ["VKLLM_TUNING"] = "off"

# Memory of devices begins with floats that are no numbers, as other programs may leave it: what is read before it was
# written shows in every run, not in one of a hundred.
os.environ["VKLLM_LAYER_FILL_MEMORY"] = "255"

# Tests start hundreds of processes, and each would compile all modules again: half a second of processor time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Where the CPU is the device (lavapipe), most time goes into compiling shaders. Mesa keeps them in the home folder, and
# commands that tests start with a home folder of their own would compile all again.
_shaders = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
_shaders.mkdir(parents=True, exist_ok=True)
os.environ.setdefault("MESA_SHADER_CACHE_DIR", str(_shaders))

# Each kind of model has kernels of its own, and those with fewer rows and tokens at once compile in half the time.
use_quick_choices()

# A test run in CI tells about the change under test: it draws the same examples each time. Other runs explore.
# None has a deadline of its own: how long an example takes depends on what else runs on the machine.
settings.register_profile("exploring", deadline=None)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable" if os.environ.get("CI") else "exploring")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also what the marks `some` and `with_all` leave out")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with the real model take longest, so their files begin: at the end a worker would be alone with them."""
    items.sort(key=lambda item: item.get_closest_marker("weights") is None)
    if not config.getoption("--all") and not any("[" in argument for argument in config.args):
        left_out = without_some(items) | {item for item in items if item.get_closest_marker("with_all")}
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def without_some(items: list[pytest.Item]) -> set[pytest.Item]:
    """What a test with the mark `some(n)` leaves out: of the combinations of its parameters every n-th runs.

    Besides these runs what is needed for every value of every parameter to run at least once.
    """
    left_out: set[pytest.Item] = set()
    for _, each in itertools.groupby(items, lambda item: item.nodeid.split("[")[0]):
        group = list(each)
        if (mark := group[0].get_closest_marker("some")) is None:
            continue
        seen: set[tuple[str, str]] = set()
        kept = group[:: mark.args[0]]
        for item in kept + [item for item in group if item not in kept]:
            values = {(name, repr(value)) for name, value in item.callspec.params.items()}  # type: ignore[attr-defined]
            if item in kept or values - seen:
                seen |= values
            else:
                left_out.add(item)
    return left_out


def pytest_collection(session: pytest.Session) -> None:
    """Collecting makes millions of objects, of which hardly any is garbage."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """They stay to the end, so the garbage collector need not look at them again after each test."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound GGUF of one small layer."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def fake_llm(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LLM]]:
    """Makes LLMs whose engine is fake_engine.FakeEngine in a process of its own; all are closed at the end."""
    monkeypatch.setattr(
        "vkllm.api.loading.EngineProcess", functools.partial(EngineProcess, factory="fake_engine:FakeEngine")
    )
    made: list[LLM] = []

    def make(**options: Any) -> LLM:
        made.append(LLM(options.pop("model", tiny_gguf), **options))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's file, or the one that VKLLM_TEST_MODEL names; skips where it cannot be had."""
    if path := os.environ.get("VKLLM_TEST_MODEL"):
        return Path(path)
    try:
        return find_model("smollm2")
    except ModelNotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2(default_model: Path) -> Iterator[LLM]:
    """The default model on the default device."""
    with LLM(default_model) as llm:
        yield llm
