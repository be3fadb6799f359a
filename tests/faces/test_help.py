"""Help: quick, at most 80 columns wide, and every example in it runs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hub_server import HubServer
from terminal import FAKE, REAL, Command, terminal
from tiny_gguf import write_tiny_gguf

from vkllm.store.catalog import WheelSource, catalog
from vkllm.store.downloads.checks import mark_checked
from vkllm.store.downloads.wheel import wheel_model_path

COMMANDS = ["", "run", "chat", "pull", "list", "show", "rm", "plan", "devices", "bench", "perplexity", "tune"]
REPOS = {
    "bartowski/Llama-3.2-1B-Instruct-GGUF": "Llama-3.2-1B-Instruct-Q4_K_M.gguf",
    "bartowski/Llama-3.2-3B-Instruct-GGUF": "Llama-3.2-3B-Instruct-Q5_K_M.gguf",
}


@pytest.fixture(scope="module")
def help_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The help of a command in a terminal of 80 columns, asked for once."""
    command = Command(tmp_path_factory.mktemp("help"), COLUMNS="80")

    @cache
    def help_of(name: str) -> str:
        done = command.run([*REAL, *name.split(), "--help"])
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return help_of


def examples(text: str) -> list[str]:
    return [line.strip() for line in text.partition("Examples")[2].splitlines() if line.strip()]


@pytest.fixture
def command(server: HubServer, tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`vkllm` on the path with a fake engine, in a folder with what examples speak of, beside a hub of their models.

    The default model is there, as the cache would have it; it is a small one with as long a context.
    """
    for repo, file in REPOS.items():
        server.hub[repo] = {file: tiny_gguf.read_bytes()}
    server.add_ollama("library/llama3.2", "1b", tiny_gguf.read_bytes())
    server.files["/model.gguf"] = tiny_gguf.read_bytes()
    work, cache = tmp_path / "work", tmp_path / "cache"
    for folder in (work / "models", work / "bin", cache / "models"):
        folder.mkdir(parents=True)
    (work / "models" / "tiny.gguf").symlink_to(tiny_gguf)
    (work / "notes.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    script = work / "bin" / "vkllm"
    script.write_text(f"#!{FAKE[0]}\n{FAKE[2]}\n")
    script.chmod(0o755)
    monkeypatch.setenv("VKLLM_CACHE", str(cache))
    smollm2 = next(entry for entry in catalog() if entry.name == "smollm2")
    assert isinstance(smollm2.source, WheelSource)
    mark_checked(smollm2, write_tiny_gguf(wheel_model_path(smollm2.source), n_ctx=8192))
    command = Command(
        tmp_path,
        COLUMNS="80",
        HOME=str(work),
        HF_HOME=str(tmp_path / "home"),
        HF_ENDPOINT=server.url,
        VKLLM_OLLAMA_REGISTRY=server.url,
        VKLLM_DATA=str(tmp_path / "data"),
    )
    command.environment["PATH"] = f"{work / 'bin'}:{command.environment['PATH']}"
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    monkeypatch.chdir(work)
    return command


def run_example(command: Command, line: str) -> int:
    """Its exit code; a person says yes to a question and leaves a chat at once."""
    if re.match(r"vkllm (chat|rm (?!-y))|vkllm$", line):
        with terminal(command, ["/bin/bash", "-c", line]) as screen:
            screen.expect(r">>> |\[y/N\] ", timeout_s=30)
            screen.type("y\n" if " rm " in line else "/bye\n")
            screen.expect_exit(30)
            assert screen.exit_code is not None
            return screen.exit_code
    done = command.run(["/bin/bash", "-c", line])
    assert "error" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    return done.returncode


@pytest.mark.gpu
@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_in_the_help_runs(
    command: Command, server: HubServer, help_of: Callable[[str], str], name: str
) -> None:
    shown = examples(help_of(name))
    assert 2 <= len(shown) <= 4
    for line in shown:
        assert f"vkllm {name}".rstrip() in line
        if " rm " in line:
            assert run_example(command, "vkllm pull llama-3.2-1b") == 0
        assert run_example(command, line.replace("https://example.org", server.url)) == 0, line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_into_80_columns(help_of: Callable[[str], str], name: str) -> None:
    text = help_of(name)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text and "<list[" not in text.partition("─ Options ─")[2]


def test_help_teaches_the_exit_codes(help_of: Callable[[str], str]) -> None:
    text = " ".join(help_of("run").split())
    assert "Exit codes: 0 answered, 2 an error (one line on standard error), 130 stopped by Ctrl-C." in text


def test_help_loads_nothing_that_is_slow(tmp_path: Path) -> None:
    slow = {"numpy", "tokenizers", "jinja2", "huggingface_hub", "textual", "kp", "vulkan", "gguf", "llguidance"}
    code = (
        "import sys; sys.argv = ['vkllm', 'run', '--help']\nfrom vkllm.faces.cli.app import main\n"
        f"try: main()\nexcept SystemExit: pass\nprint(sorted({slow!r} & set(sys.modules)))"
    )
    assert Command(tmp_path).run([REAL[0], "-c", code]).stdout.splitlines()[-1] == "[]"
