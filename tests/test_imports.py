"""Imports run one way, and libraries stay in their own folders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vkllm

PACKAGE = Path(vkllm.__file__).parent

# What each part may import of the others. Neither the GPU nor the engine knows text.
_FILES = {"errors", "resources", "formats"}
_DEVICE = _FILES | {"model", "gpu"}
_ANSWERS = _DEVICE | {"engine", "text", "generation"}
ALLOWED = {
    "errors": set(),
    "resources": {"errors"},
    "downloads": {"errors", "resources"},
    "store": _FILES | {"downloads"},
    "formats": {"errors"},
    "text": {"errors", "formats"},
    "model": {"errors", "formats"},
    "gpu": _FILES | {"model"},
    "engine": _DEVICE,
    "generation": _DEVICE | {"engine", "text"},
    "prompts": _ANSWERS,
    "embedding": _DEVICE | {"engine"},
    "measuring": _ANSWERS | {"prompts"},
    "async_stream": _ANSWERS | {"prompts"},
    "openai": _ANSWERS | {"prompts", "embedding", "async_stream"},
    "chat": _ANSWERS | {"prompts", "async_stream", "openai"},
    "llm": _ANSWERS | {"prompts", "embedding", "measuring", "chat", "openai", "store"},
    "async_llm": _ANSWERS | {"prompts", "embedding", "async_stream", "chat", "openai", "llm"},
    "planning": _DEVICE | {"store"},
    "adapters": {"store"},
    "faces": _DEVICE | {"engine", "text", "generation", "llm", "planning", "store"},
}

# Libraries that only one file or folder knows.
HOMES = {
    "kp": "gpu/device.py",
    "vulkan": "gpu/",
    "gguf": "formats/",
    "tokenizers": "text/",
    "jinja2": "text/",
    "llguidance": ("text/", "engine/constraint.py"),
    "huggingface_hub": "downloads/",
    "typer": "faces/",
    "rich": "faces/",
    "textual": "faces/tui/",
    "markdown_it": "faces/tui/",
    "pygments": "faces/tui/",
    "starlette": "faces/server/",
    "pydantic": ("openai/", "faces/server/", "adapters/"),
    "llm": "adapters/",
    "langchain_core": "adapters/",
}


def imported_modules(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "vkllm":
                yield from (f"vkllm.{name.name}" for name in node.names)


def import_errors(path: Path, part: str, relative: str) -> list[str]:
    errors = []
    for module in imported_modules(path):
        top, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if top == "vkllm" and other in ALLOWED and other != part and other not in ALLOWED.get(part, ALLOWED):
            errors.append(f"{relative} imports {module}")
        if top in HOMES and not relative.startswith(HOMES[top]):
            errors.append(f"{relative} imports {module}, which belongs to {HOMES[top]}")
    return errors


def test_imports_run_one_way_and_libraries_stay_at_home() -> None:
    errors = []
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE).as_posix()
        part = relative.split("/")[0].removesuffix(".py")
        assert part in ALLOWED or part in ("__init__", "__main__"), f"{relative}: to which part does it belong?"
        errors += import_errors(path, part, relative)
    assert errors == []


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("engine", "from vkllm.text.tokenizer import Tokenizer"),
        ("formats", "    import vkllm.gpu.device"),
        ("gpu", "from vkllm import llm"),
        ("text", "from huggingface_hub import hf_hub_download"),
        ("engine", "import kp"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path: Path, part: str, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"if True:\n    {line.strip()}\n")
    assert len(import_errors(path, part, f"{part}/module.py")) == 1
