"""Links lead somewhere, what is not run is known, and every command in the text is one that there is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pages
import pytest
import typer
from pages import PAGES, ROOT

from vkllm import SamplingParams
from vkllm.faces.cli.app import app
from vkllm.faces.sampling import OPTIONS

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
LANGUAGES = {"sh", "python", "chat", ""}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for link in pages.read(path).links:
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link}: there is no {target}"
        assert not anchor or anchor in pages.read(target).anchors, f"{link}: {target.name} has no such heading"


def test_links_and_headings_are_found() -> None:
    readme = pages.read(ROOT / "README.md")
    assert {"docs/design.md", "docs/chat.svg"} <= set(readme.links)
    assert "two-commands" in readme.anchors


def test_every_page_is_linked_from_the_readme() -> None:
    links = {link.partition("#")[0] for link in pages.read(ROOT / "README.md").links}
    assert {name(path) for path in PAGES if path.name != "README.md"} <= links


def test_every_block_says_what_it_is() -> None:
    found = {snippet.language for path in PAGES for snippet in pages.read(path).snippets}
    assert found <= LANGUAGES


def test_what_is_not_run_is_little_and_known() -> None:
    left_out = [snippet for path in PAGES for snippet in pages.read(path).snippets if snippet.not_run]
    assert [(name(snippet.page), snippet.code.split("  ")[0].strip()) for snippet in left_out] == [
        ("README.md", "make run"),
        ("docs/hardware.md", "distrobox create --image debian:12 --name vkllm"),
        ("docs/several_gpus.md", "vkllm devices --exchange"),
        (
            "docs/several_gpus.md",
            'llm = LLM("llama-3.1-8b", device="0,1", split_mode="layer", tensor_split=(3, 1))',
        ),
    ]


def test_make_knows_the_targets_that_the_pages_name() -> None:
    code = "".join(snippet.code for path in PAGES for snippet in pages.read(path).snippets)
    targets = set(re.findall(r"^make (\w+)", code, re.MULTILINE))
    assert targets == {"run", "test"}
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_command_in_the_text_is_one_that_there_is(path: Path) -> None:
    for code in pages.read(path).codes:
        words = code.split()
        if words[:1] != ["vkllm"] or len(words) < 2 or words[1].startswith("-"):
            continue
        assert words[1] in COMMANDS, f"`{code}`: there is no such command"
        options = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts} | {"--help"}
        for word in words[2:]:
            assert not re.match(r"--?[a-z]", word) or word in options, f"`{code}`: {words[1]} has no {word}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_file_of_the_project_that_the_text_names_is_there(path: Path) -> None:
    for code in pages.read(path).codes:
        if re.fullmatch(r"(vkllm|docs|tests|shaders|scripts|models)/[\w/.-]+", code):
            assert (ROOT / code).exists(), f"`{code}` is not there"


def test_the_table_of_sampling_has_every_option_with_its_default() -> None:
    section = (ROOT / "docs" / "run.md").read_text().split("## Sampling\n")[1].split("\n## ")[0]
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:4]] for line in section.splitlines()]
    defaults = {name: getattr(SamplingParams(), name) for name in OPTIONS}
    shown = {name: "" if value is None or value == () else str(value) for name, value in defaults.items()}
    assert [row for row in rows if row and row[0].startswith("-") and row[0] != "---"] == [
        [option, name, shown[name]] for name, option in OPTIONS.items()
    ]


def test_the_six_names_of_a_tokens_path_are_defined_in_their_files() -> None:
    section = (ROOT / "README.md").read_text().partition("## Where to read the code first")[2].partition("\n## ")[0]
    names = re.findall(r"^\d\. `([\w.]+)` \(`([\w./]+)`\)", section, re.MULTILINE)
    assert len(names) == 6
    for name, file in names:
        owner, _, function = name.rpartition(".")
        text = (ROOT / file).read_text()
        assert re.search(rf"\b(def|void) {function}\(", text), f"{file} has no {name}"
        assert not owner or f"class {owner}" in text
    calls = [("run_model", "llm.chat("), ("Engine.step", "_program.submit("), ("Program.submit", "decoder(")]
    for name, call in calls:
        assert call in (ROOT / dict(names)[name]).read_text(), f"{name} does not lead to {call}"
