"""What reaches a terminal: control sequences made visible, numbers with their words, speeds only where measured."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import FAKE, Command, terminal
from tiny_gguf import write_tiny_gguf

from vkllm import LLM, Piece, RunStats
from vkllm.faces.terminal import complain, counted, enumerated, print_stats, say, show, visible

HOSTILE = "\x1b[2J\x1b]52;c;aGk=\x07\x1b]8;;http://h\x1b\\x\x9b31m\x7f\r\x08\u202eabc\u2066"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred", "^[[31mred"),
        ("\x00\x07\x08\r\x0b\x7f", "^@^G^H^M^K^?"),
        ("\x9b31m\x85", "<9B>31m<85>"),
        ("\u202etxt.exe\u2066", "<U+202E>txt.exe<U+2066>"),
        ("日本 é 😀 \u200f\u00a0", "日本 é 😀 \u200f\u00a0"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert "".join(map(visible, text)) == shown  # also in pieces


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_gets_them_made_visible(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(stdout, "isatty", lambda: is_terminal)
    say(HOSTILE)
    assert stdout.getvalue() == (visible(HOSTILE) if is_terminal else HOSTILE) + "\n"


@pytest.mark.parametrize(
    ("is_terminal", "shown"),
    [(True, "Thinking…\nHm ^[[31m\n\nFour, or so.\n"), (False, "Four, or so.\n")],
)
def test_a_terminal_shows_reasoning_and_a_file_gets_the_answer_alone(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, shown: str
) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    pieces = [Piece("", reasoning="Hm"), Piece("", reasoning=" \x1b[31m"), Piece("Four"), Piece(", or so.")]
    assert show(Pieces(pieces))  # type: ignore[arg-type]
    assert stdout.getvalue() == shown
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    assert show(Pieces(pieces))  # type: ignore[arg-type]
    assert ("\x1b[2mThinking" in stdout.getvalue()) is is_terminal
    stdout.truncate(0)
    stdout.seek(0)
    assert show(Pieces(pieces), "hidden")  # type: ignore[arg-type]
    assert stdout.getvalue() == "Four, or so.\n"
    assert show(Pieces(pieces), "printed")  # type: ignore[arg-type]
    escape = "^[" if is_terminal else "\x1b"
    assert stdout.getvalue().endswith(f"\n<think>\nHm {escape}[31m\n</think>\n\nFour, or so.\n")


class Pieces(list[Piece]):
    """Stands for a stream."""

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_an_error_never_holds_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    complain("error", f"{HOSTILE}: no such file")
    assert capsys.readouterr().err.startswith(
        "vkllm: error: ^[[2J^[]52;c;aGk=^G^[]8;;http://h^[\\x<9B>31m^? ^H<U+202E>"
    )


def test_an_answer_and_a_models_facts_are_harmless_on_a_terminal_and_whole_in_a_pipe(tmp_path: Path) -> None:
    tiny = str(write_tiny_gguf(tmp_path / "a\x1b[2Jb.gguf"))
    command = Command(tmp_path)
    assert command.run([*FAKE, "run", tiny, "Hi \x1b[31m"]).stdout == "user\nHi \x1b[31m\n"
    for arguments, shown in (
        (["run", tiny, "Hi \x1b[31m", "--stats"], "Hi ^[[31m"),
        (["run", tiny, "--raw", "x" * 999], "vkllm: error: the prompt has 999 tokens"),
        (["show", tiny], "a^[[2Jb.gguf"),
        (["run", str(tmp_path / "no\x1b[2J.gguf"), "Hi"], "no^[[2J.gguf"),
    ):
        with terminal(command, [*FAKE, *arguments]) as screen:
            seen = screen.expect_exit(30)
        assert shown in seen and "\x1b" not in seen


@pytest.mark.parametrize(
    ("n", "words"), [(0, "0 tokens"), (1, "1 token"), (2, "2 tokens"), (-1, "-1 tokens"), (21, "21 tokens")]
)
def test_a_number_has_its_word(n: int, words: str) -> None:
    assert counted(n, "token") == words


def test_words_of_a_sentence() -> None:
    assert [enumerated(list(words)) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("stats", "prompt", "answer"),
    [
        (RunStats(1, 0, 1, 0.5, 0.5, 0.0), "1 token (0 cached), 2.00 tok/s", "1 token, the first after 0.50 s"),
        (RunStats(5, 5, 3, 0.0, 0.1, 0.5), "5 tokens (5 cached)", "3 tokens, 4.00 tok/s, the first after 0.10 s"),
        (RunStats(5, 1, 0, 0.5, 0.0, 0.0), "5 tokens (1 cached), 8.00 tok/s", "0 tokens"),
    ],
)
def test_no_speed_is_shown_where_none_was_measured(
    fake_llm: Callable[..., LLM], capsys: pytest.CaptureFixture[str], stats: RunStats, prompt: str, answer: str
) -> None:
    print_stats(fake_llm(), stats)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2:4] == [f"prompt  {prompt}", f"answer  {answer}"]
