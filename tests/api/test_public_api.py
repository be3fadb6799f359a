"""Every public name is there, says what it is, and has an example that runs.

The examples are doctests on the default model. They find in place: the public names; `llm` and `async_llm`, loaded; and
in the current folder cut.gguf, half a file, and mamba.gguf, of an architecture that vkllm does not know.
"""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_gguf

import vkllm
from vkllm import LLM, AsyncLLM
from vkllm.api import chat
from vkllm.api.openai import create

PUBLIC = [name for name in vkllm.__all__ if name != "__version__"]
# What they return has methods too, which are not reached by a public name.
MODULES = sorted({getattr(vkllm, name).__module__ for name in PUBLIC} | {m.__name__ for m in (chat, create)})

# Measurements take many seconds on a real device, and a model that was closed cannot serve other examples: these use an
# engine without a device.
WITHOUT_DEVICE = {"DeviceLost", "DeviceReport", "KernelTime", "StepTimes", "TuningReport"}

# Of these there are only attributes of LLM and AsyncLLM.
NAMESPACES = {"AsyncChat", "AsyncCompletions", "AsyncEmbeddings", "Chat", "Completions", "Embeddings"}

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        yield from (test for test in finder.find(import_module(name)) if test.examples)


EXAMPLES = {test.name: test for test in examples()}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    value = getattr(vkllm, name)
    assert value.__doc__, f"{name} has no docstring"
    assert f"{value.__module__}.{value.__qualname__}" in EXAMPLES, f"{name} has no example"


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isclass(getattr(vkllm, name))])
def test_every_public_method_has_a_docstring(name: str) -> None:
    cls = getattr(vkllm, name)
    own = [parent for parent in cls.__mro__ if parent.__module__.startswith("vkllm")]
    for parent in own:
        for method, member in vars(parent).items():
            if not method.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                assert inspect.getdoc(member), f"{name}.{method} has no docstring"


def test_what_public_methods_return_is_public() -> None:
    ours = {name for module in MODULES for name, value in vars(import_module(module)).items() if is_ours(value)}
    for name in PUBLIC:
        for method, member in vars(getattr(vkllm, name)).items():
            function = member.fget if isinstance(member, property) else member
            if not method.startswith("_") and inspect.isfunction(function):
                returned = set(re.findall(r"\w+", str(function.__annotations__["return"]))) & ours
                assert returned <= {*PUBLIC, *NAMESPACES}, f"{name}.{method}"


def is_ours(value: object) -> bool:
    return inspect.isclass(value) and value.__module__.startswith("vkllm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples")
    whole = write_tiny_gguf(path / "mamba.gguf", architecture="mamba")
    (path / "cut.gguf").write_bytes(whole.read_bytes()[:1000])
    return path


@pytest.mark.gpu
@pytest.mark.weights
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_runs(
    name: str, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    llm: LLM
    if name.rpartition(".")[2] in WITHOUT_DEVICE:
        make: Callable[[], LLM] = request.getfixturevalue("fake_llm")
        llm = make()
    else:
        llm = request.getfixturevalue("smollm2")
    test = EXAMPLES[name]
    names = {public: getattr(vkllm, public) for public in PUBLIC}
    test.globs = {**names, "llm": llm, "async_llm": AsyncLLM(llm)}
    told: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=told.append, clear_globs=True)
    assert not told, "".join(told)
