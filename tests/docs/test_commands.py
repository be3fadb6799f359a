"""Every command that README.md and docs/ show runs, and prints what they say that it prints.

A page's commands run in their order. One whose output is shown runs with the real engine, the others in a terminal with
the fake one. A `chat` block is typed into `vkllm run smollm2`; what it shows there has to come.
"""

from __future__ import annotations

import doctest
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest
from machine import Machine
from pages import PAGES, ROOT, Snippet

pytestmark = [pytest.mark.gpu, pytest.mark.weights]
BOUNDS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def snippets(path: Path) -> list[Snippet]:
    return [each for each in pages.read(path).snippets if each.language in ("sh", "chat") and not each.not_run]


def commands(code: str) -> Iterator[str]:
    """The commands of a block: its lines, joined where a quotation, a here-document or a backslash goes on."""
    command = ""
    for line in code.splitlines():
        command += line + "\n"
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True)
        if checked.returncode == 0 and not checked.stderr and not line.endswith("\\"):
            if re.sub(r"(^|\s)#.*", "", command).strip():
                yield command
            command = ""
    assert not command.strip(), f"this ends too early: {command}"


def without_control(text: str) -> str:
    """What a terminal shows, without colours, cursor and the like."""
    return re.sub(r"\x1b(\[[\d;?<>]*[A-Za-z]|[=>])", "", text).replace("\r", "\n")


def is_shown(wanted: str, text: str) -> bool:
    return doctest.OutputChecker().check_output(wanted, text, BOUNDS)


def problem_of(snippet: Snippet, machine: Machine) -> str | None:
    """What went wrong with a block, or None."""
    if snippet.language == "chat":
        typed = [line[4:] for line in snippet.code.splitlines() if re.match(r"(>>>|\.\.\.) ", line)]
        code, text = machine.in_terminal("TERM=dumb vkllm run smollm2", typed)
        seen = without_control(text).partition(">>> ")
        is_good = is_shown(snippet.code.rstrip() + "...", seen[1] + seen[2])
        return None if code == 0 and is_good else f"exit code {code}, not as shown: {seen[2]}"
    if snippet.output is not None:
        code, text = machine.output_of(snippet.code)
        return None if code == 0 and is_shown(snippet.output, text) else f"exit code {code}: {text}"
    for command in commands(snippet.code):
        code, text = machine.in_terminal(command)
        if code != 0 or "Traceback" in text:
            return f"{command}exit code {code}: {without_control(text)[-2000:]}"
    return None


@pytest.mark.parametrize("path", [path for path in PAGES if snippets(path)], ids=lambda path: path.name)
def test_every_command_of_a_page_runs(path: Path, machine: Machine) -> None:
    problems = [f"{each.where}: {problem}" for each in snippets(path) if (problem := problem_of(each, machine))]
    assert not problems, "\n".join(problems)


def test_blocks_are_cut_into_commands() -> None:
    code = "# a comment\none  # told\ncat > file <<'EOF'\nfirst\nlast\nEOF\ntwo 'a\nb' | \\\n  three\n\nfour\n"
    found = ["one  # told\n", "cat > file <<'EOF'\nfirst\nlast\nEOF\n", "two 'a\nb' | \\\n  three\n", "four\n"]
    assert list(commands(code)) == found


def test_a_command_that_fails_and_output_that_is_another_are_found(machine: Machine) -> None:
    def block(code: str, output: str | None = None, language: str = "sh") -> Snippet:
        return Snippet(ROOT / "README.md", 1, language, code, output, None)

    assert problem_of(block("true\nfalse\ntrue\n"), machine)
    assert problem_of(block("vkllm run nothing Hello\n"), machine)
    assert problem_of(block("vkllm --version\n", "0.0.0\n"), machine)
    assert problem_of(block("vkllm --version\n", "0...\n"), machine) is None
    assert problem_of(block(">>> /show system\nSomething\n>>> /bye\n", language="chat"), machine)
