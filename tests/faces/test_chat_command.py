"""`vkllm chat` and bare `vkllm` where there is no screen to draw on; tests/faces/tui has the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import FAKE, REAL, Command, terminal


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """A run of the command that must leave no process and no temporary file."""
    command = Command(tmp_path, VKLLM_DATA=str(tmp_path / "data"))
    yield command
    assert command.leftovers() == []
    assert not (tmp_path / "data").exists()  # the plain chat keeps nothing


def test_without_a_terminal_bare_vkllm_is_one_line_and_exits_2(command: Command) -> None:
    done = command.run([*REAL])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("vkllm: error: `vkllm` alone is the chat, which needs a terminal")


def test_piped_input_is_answered_as_by_run(command: Command, tiny_gguf: Path) -> None:
    assert command.run([*FAKE, "chat", str(tiny_gguf)], "Hi\n").stdout == "user\nHi\n"


def test_a_dumb_terminal_gets_the_plain_chat(command: Command, tiny_gguf: Path) -> None:
    with terminal(command, [*FAKE, "chat", str(tiny_gguf)]) as screen:
        screen.expect("tiny on fake device.*\n>>> ")
        screen.type("/bye\n")
        screen.expect_exit()
        assert screen.exit_code == 0


def test_wrong_input_is_one_line_before_any_screen(command: Command, tiny_gguf: Path) -> None:
    for arguments, word in (([str(tiny_gguf), "--temp", "-1"], "--temp"), (["no-such-model"], "no-such-model")):
        done = command.run([*FAKE, "chat", *arguments])
        assert done.returncode == 2
        assert done.stderr.startswith("vkllm: error: ") and word in done.stderr and done.stderr.count("\n") == 1
