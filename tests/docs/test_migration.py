"""docs/migration.md: each line of ours runs, after those above it, on a small model with random weights."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest

from vkllm.store import FoundModel

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
CELL = re.compile(r"(?<!\\)\|")


def tables() -> dict[str, list[tuple[str, str]]]:
    """Heading -> (their code, our code) of each line of the table below it."""
    found: dict[str, list[tuple[str, str]]] = {}
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| `"):
            theirs, ours = (code_in(cell) for cell in CELL.split(line.strip("| ")))
            found.setdefault(heading, []).append((theirs, ours))
    return found


def code_in(cell: str) -> str:
    match = re.match(r"\s*`(.+?)`", cell)
    assert match, f"there is no code in {cell!r}"
    return match[1].replace(r"\|", "|")


def test_there_is_a_table_for_each_library() -> None:
    assert tables().keys() == {"llama-cpp-python", "MLC LLM", "vLLM", "The openai package"}
    assert all(len(rows) > 6 for rows in tables().values())


@pytest.mark.parametrize(("theirs", "ours"), [row for rows in tables().values() for row in rows])
def test_both_sides_are_python(theirs: str, ours: str) -> None:
    for code in (theirs, ours):
        compile(code, "migration.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.gpu
@pytest.mark.parametrize("library", tables())
def test_our_lines_run_in_their_order(
    library: str, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a line calls the model, it gets the tiny one, and all that is asked of it really runs."""
    monkeypatch.setattr("vkllm.api.loading.look_up", lambda name: FoundModel(str(name), None, tiny_gguf))
    monkeypatch.chdir(tmp_path)

    async def run() -> None:
        names: dict[str, object] = {}
        for _, ours in tables()[library]:
            try:
                line = eval(compile(ours, "migration.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
                if inspect.isawaitable(line):
                    await line
            except Exception as error:
                error.add_note(f"in the line {ours!r}")
                raise

    asyncio.run(run())
