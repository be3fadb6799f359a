"""docs/configuration.md names every variable that the sources read, and every option of loading a model."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from vkllm.api.loading import LoadOptions
from vkllm.faces.cli.app import app

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
INCLUDE_GUARD = "VKLLM_LAYER_H"


def variables(text: str) -> set[str]:
    return set(re.findall(r"\bVKLLM_[A-Z][A-Z_]*[A-Z]\b", text)) - {INCLUDE_GUARD}


def options(command: str) -> set[str]:
    return {name for option in COMMANDS[command].params for name in option.opts if name.startswith("-")}


def table(heading: str) -> list[list[str]]:
    """The cells of the rows under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "`" in line[:4]]


def test_the_page_has_a_line_for_each_variable_that_the_sources_know() -> None:
    sources = [path for kind in ("py", "c", "h") for path in (ROOT / "vkllm").rglob(f"*.{kind}")]
    known = set().union(*(variables(path.read_text()) for path in sources))
    assert len(known) >= 9
    assert {row[0].strip("`") for row in table("Environment variables")} == known == variables(PAGE)


def test_the_page_has_a_line_for_each_option_of_loading() -> None:
    shared = options("run") & options("chat") & options("plan") - {"-h", "--help", "-m", "--model"}
    rows = table("How a model is loaded")
    for_all = [row[0] for row in rows if " of `vkllm" not in row[0]]
    assert {name for cell in for_all for name in re.findall(r"`([^`]+)`", cell)} == shared
    assert {row[1].strip("`") for row in rows} == set(LoadOptions.__annotations__) - {
        "chat_template",
        "variables",
        "sampling",
        "seed",
        "on_progress",
    }


def test_every_option_that_the_page_mentions_exists() -> None:
    mentioned = set(re.findall(r"`(--?[a-z][a-z-]*)`", PAGE))
    assert mentioned <= options("run") | options("serve") and "--context-shift" in mentioned & options("chat")
