"""docs/troubleshooting.md has every class of errors, and quotes messages that there are."""

from __future__ import annotations

import ast
import inspect
import re

import pages
import pytest
from pages import ROOT

from vkllm import errors

PAGE = ROOT / "docs" / "troubleshooting.md"
SETUP = ROOT / "scripts" / "setup.sh"


def quotations() -> list[list[str]]:
    """The messages in the first columns, each as its literal parts in order."""
    cells = [line.split(" | ")[0] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", cell) for cell in cells]


def texts() -> list[str]:
    """All strings in vkllm's sources, with what is put into them left out, and the lines of the set-up."""
    found = SETUP.read_text().splitlines()
    for path in (ROOT / "vkllm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.fixture(scope="module")
def sources() -> list[str]:
    return texts()


def test_every_class_of_errors_has_a_heading() -> None:
    classes = {name for name, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__}
    assert len(classes) >= 13
    assert {name.lower() for name in classes} <= set(pages.read(PAGE).anchors)


@pytest.mark.parametrize("parts", quotations(), ids=" ".join)
def test_every_message_that_is_quoted_is_one_that_there_is(parts: list[str], sources: list[str]) -> None:
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    assert any(pattern.search(text) for text in sources)


def test_messages_are_found_and_others_are_not(sources: list[str]) -> None:
    assert len(quotations()) > 40
    assert not any("a message that nobody has ever " + "written" in text for text in sources)
