"""Imports run one way, between rooms and between files, and libraries stay in their own folders."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vkllm

PACKAGE = Path(vkllm.__file__).parent

# What each room may import of the others. Neither the GPU nor the engine knows text.
_FILES = {"errors", "parameters", "resources", "formats", "sizes", "time_limit"}
_DEVICE = _FILES | {"model", "gpu"}
ALLOWED = {
    "errors": set(),
    "parameters": {"errors"},
    "resources": {"errors"},
    "sizes": set(),
    "time_limit": {"errors"},
    "formats": {"errors"},
    "text": {"errors", "formats", "time_limit"},
    "store": _FILES | {"model"},
    "model": {"errors", "parameters", "formats", "sizes", "time_limit"},
    "gpu": _FILES | {"model"},
    "engine": _DEVICE,
    "api": _DEVICE | {"engine", "text", "store"},
    "faces": _DEVICE | {"engine", "text", "store", "api"},
    "adapters": {"store"},
}

# Rooms in these rooms: each may import those before it, never one behind it. "." are the files of the room itself.
ORDER = {
    "gpu": ("layer", "device", "program", "tuning", "measure"),
    "engine": (".", "process"),
    "model": (".", "architectures", "memory"),
    "store": ("catalog", "families", "ollama", "downloads", "choice", "other_tools", "names", "models"),
    "faces": (".", "chat", "tui", "server", "cli"),
}

# Libraries that only one file or folder knows.
HOMES = {
    "kp": "gpu/device/kompute.py",
    "vulkan": "gpu/device/",
    "gguf": "formats/",
    "tokenizers": "text/",
    "jinja2": "text/",
    "llguidance": ("text/", "engine/constraint.py"),
    "huggingface_hub": "store/downloads/",
    "typer": "faces/",
    "rich": "faces/",
    "textual": "faces/tui/",
    "markdown_it": "faces/tui/",
    "pygments": "faces/tui/",
    "starlette": "faces/server/",
    "uvicorn": "faces/server/serving.py",
    "pydantic": ("api/openai/", "faces/server/", "adapters/"),
    "llm": "adapters/",
    "langchain_core": "adapters/",
}


def imported_modules(path: Path, *, at_runtime: bool = False) -> Iterator[str]:
    """The full names of all that a file imports, inside functions too. at_runtime: but not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for_types |= {child for statement in node.body for child in ast.walk(statement)}
    for node in ast.walk(tree):
        if at_runtime and node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if (node.module or "").split(".")[0] == "vkllm":
                yield from (f"{node.module}.{name.name}" for name in node.names)


def import_errors(path: Path, relative: str) -> list[str]:
    """What a file imports and may not. relative: its path in the package."""
    room, *inner = relative.removesuffix(".py").split("/")
    errors = []
    for module in imported_modules(path):
        top, *names = module.split(".")
        if top == "vkllm" and names:
            other = names[0]
            if other in ALLOWED and other != room and other not in ALLOWED.get(room, ALLOWED):
                errors.append(f"{relative} imports {module}")
            elif other == room and len(names) > 1 and len(inner) and inner != ["__init__"]:
                here, there = _place(room, inner[0]), _place(room, names[1])
                if here is not None and there is not None and there > here:
                    errors.append(f"{relative} imports {module}, which stands above it")
        if top in HOMES and not relative.startswith(HOMES[top]):
            errors.append(f"{relative} imports {module}, which belongs to {HOMES[top]}")
    return errors


def _place(room: str, name: str) -> int | None:
    """Where a file or folder of a room stands in the room's order; None in a room without one."""
    order = ORDER.get(room, ())
    if name in order:
        return order.index(name)
    return order.index(".") if "." in order and (PACKAGE / room / f"{name}.py").exists() else None


def circle(graph: Mapping[str, Sequence[str]]) -> list[str]:
    """The files of one circle of imports; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def imports_between(files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Which files import which, by the names of their modules."""
    return {
        name: [other for other in imported_modules(path, at_runtime=True) if other in files and other != name]
        for name, path in files.items()
    }


def test_imports_run_one_way_and_libraries_stay_at_home() -> None:
    errors = []
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE).as_posix()
        room = relative.split("/")[0].removesuffix(".py")
        assert room in ALLOWED or room in ("__init__", "__main__"), f"{relative}: to which room does it belong?"
        errors += import_errors(path, relative)
    assert errors == []


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {
        ".".join(("vkllm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"  # it imports by name, when a name is asked for
    }
    assert circle(imports_between(files)) == []


def test_a_circle_is_seen_also_in_functions(tmp_path: Path) -> None:
    files = {f"vkllm.{name}": tmp_path / f"{name}.py" for name in "abc"}
    files["vkllm.a"].write_text("from vkllm.b import thing\n")
    files["vkllm.b"].write_text("def f():\n    from vkllm import c\n")
    files["vkllm.c"].write_text("import vkllm.a\n")
    assert set(circle(imports_between(files))) == set(files)
    files["vkllm.c"].write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vkllm.a\n")
    assert circle(imports_between(files)) == []


@pytest.mark.parametrize(
    ("relative", "line"),
    [
        ("engine/module.py", "from vkllm.text.tokenizer import Tokenizer"),
        ("formats/module.py", "    import vkllm.gpu.device.kompute"),
        ("gpu/program/module.py", "from vkllm import api"),
        ("gpu/program/module.py", "from vkllm.gpu.tuning.cache import keep"),
        ("gpu/device/module.py", "from vkllm.gpu.program import kernels"),
        ("faces/chat/module.py", "from vkllm.faces.cli.run import run_model"),
        ("faces/terminal.py", "import vkllm.faces.tui.app"),
        ("text/module.py", "from huggingface_hub import hf_hub_download"),
        ("engine/module.py", "import kp"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path: Path, relative: str, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"if True:\n    {line.strip()}\n")
    assert len(import_errors(path, relative)) >= 1
