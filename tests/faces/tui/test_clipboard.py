"""Copying: through the terminal always, through a program where there is one, and a word where neither may work."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from conftest import OpenChat

from vkllm.faces.tui.clipboard import copy_by_program, terminal_doubt


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for programs that write what they get into a file of their name."""
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def add(programs: Path, name: str, code: int = 0) -> Path:
    path = programs / name
    path.write_text(f'#!/bin/sh\necho "$@" > {path}.args\ncat > {path}.text\nexit {code}\n')
    path.chmod(0o755)
    return path.with_suffix(".text")


def test_tmux_passes_a_text_on_also_over_ssh(programs: Path) -> None:
    text = add(programs, "tmux")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "TMUX": "/tmp/x", "SSH_TTY": "/dev/pts/1"}
    assert copy_by_program("héllo\n", environment)
    assert text.read_text() == "héllo\n"
    assert (programs / "tmux.args").read_text().split() == ["load-buffer", "-w", "-"]


def test_a_desktop_s_program_is_for_people_who_sit_at_it(programs: Path) -> None:
    text = add(programs, "xclip")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "DISPLAY": ":0"}
    assert copy_by_program("one", environment) and text.read_text() == "one"
    assert not copy_by_program("two", environment | {"SSH_CONNECTION": "1.2.3.4"})
    assert text.read_text() == "one"


def test_the_next_program_is_tried_where_one_fails(programs: Path) -> None:
    add(programs, "xclip", code=1)
    text = add(programs, "xsel")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "DISPLAY": ":0"}
    assert copy_by_program("one", environment) and text.read_text() == "one"


def test_without_a_program_it_says_no() -> None:
    assert not copy_by_program("one", {"PATH": "/nowhere", "DISPLAY": ":0", "TMUX": "x"})


@pytest.mark.parametrize(
    ("environment", "size", "doubt"),
    [
        ({"TERM": "xterm-256color"}, 10, ""),
        ({"TERM": "linux"}, 10, "no clipboard"),
        ({"TERM_PROGRAM": "Apple_Terminal"}, 10, "may not take"),
        ({"VTE_VERSION": "7006"}, 10, "may not take"),
        ({"TERM": "tmux-256color", "TMUX": "x"}, 10, "set-clipboard"),
        ({"TERM": "xterm-256color"}, 80_000, "so much"),
    ],
)
def test_doubts_about_a_terminal(environment: dict[str, str], size: int, doubt: str) -> None:
    assert doubt in terminal_doubt("x" * size, environment)
    assert bool(doubt) == bool(terminal_doubt("x" * size, environment))


@pytest.mark.asyncio
async def test_a_copy_goes_to_the_terminal_and_a_doubt_is_told(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    async with open_chat() as scene:
        written: list[str] = []
        monkeypatch.setattr(scene.app._driver, "write", written.append)
        await scene.ask("think")
        await scene.press("up", "c")
        await scene.until(lambda: any("is copied" in told for told in scene.told))
        assert f"\x1b]52;c;{base64.b64encode(b'It is **four**.').decode()}\a" in written
        assert len(scene.told) == 1
        monkeypatch.setenv("TERM", "linux")
        await scene.press("c")
        await scene.until(lambda: any("no clipboard" in told and "Export chat" in told for told in scene.told))
