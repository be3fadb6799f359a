"""Prompts from arguments, files and pipes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import FAKE, Command

from vkllm.errors import InvalidParameter
from vkllm.faces.prompt import MOST_BYTES, read_text, unescaped, whole_prompt


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | None], None]:
    """Sets standard input: bytes of a pipe, or None for a person's terminal."""

    def set_stdin(content: bytes | None) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content or b"")))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: content is None)

    return set_stdin


def test_files_and_a_pipe_are_appended_in_their_order(tmp_path: Path, stdin: Callable[[bytes | None], None]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("\n\n  indented\nlast  \n\n")
    two.write_bytes(b"\xef\xbb\xbftw\xc3\xb6\r\n")  # as some editors on Windows write it
    stdin(b"piped\n")
    assert whole_prompt("Sum up:", [one, two]) == "Sum up:\n\n  indented\nlast\n\ntwö\n\npiped"
    stdin(None)
    assert whole_prompt(None, [two]) == "twö"
    assert whole_prompt("Hi", []) == "Hi"
    assert whole_prompt(None, []) is None
    stdin(b"piped\n")
    assert whole_prompt("Hi", [Path("-")]) == "Hi\n\npiped"
    stdin(b"piped\n")
    assert whole_prompt(None, []) == "piped"


def test_a_dash_reads_a_terminal_to_its_end(stdin: Callable[[bytes | None], None]) -> None:
    stdin(None)
    assert sys.stdin.buffer.write(b"typed\n") == 6 and sys.stdin.buffer.seek(0) == 0
    assert whole_prompt("Hi", [Path("-")]) == "Hi\n\ntyped"


@pytest.mark.parametrize(
    ("prompt", "piped", "message"),
    [
        ("", None, "the prompt is empty"),
        ("   ", None, "the prompt is empty"),
        (None, b" \n\n", "there is no prompt"),
        (None, b"", "there is no prompt"),
        (None, b"GGUF\0\0", "standard input is not text"),
    ],
)
def test_no_words_are_no_prompt(
    stdin: Callable[[bytes | None], None], prompt: str | None, piped: bytes | None, message: str
) -> None:
    stdin(piped)
    with pytest.raises(InvalidParameter, match=message):
        whole_prompt(prompt, [])


def test_closed_standard_input_is_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InvalidParameter, match="there is no prompt"):
        whole_prompt(None, [])
    assert whole_prompt("Hi", [Path("-")]) == "Hi"


def test_a_file_that_is_no_text_or_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(b"PNG\0")
    with pytest.raises(InvalidParameter, match="picture is not text"):
        read_text(path)
    with pytest.raises(InvalidParameter, match=r"cannot read .*none: No such file"):
        read_text(tmp_path / "none")
    with pytest.raises(InvalidParameter, match=r"cannot read .*: Is a directory"):
        read_text(tmp_path)
    path.write_bytes(b"x" * (MOST_BYTES + 1))
    with pytest.raises(InvalidParameter, match="picture has more than 16 MiB"):
        read_text(path)


def test_an_endless_pipe_is_told() -> None:
    with pytest.raises(InvalidParameter, match="/dev/urandom has more than 16 MiB"):
        read_text(Path("/dev/urandom"))


def test_a_prompt_of_any_script_reaches_the_model(tmp_path: Path, tiny_gguf: Path) -> None:
    text = "日本語で「こんにちは」 😀 é"
    path = tmp_path / "prompt.txt"
    path.write_text(text, encoding="utf-8")
    done = Command(tmp_path).run([*FAKE, "run", "-m", str(tiny_gguf), "-f", str(path)])
    assert (done.returncode, done.stdout) == (0, f"user\n{text}\n")


# --- Escapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (r"a\nb\tc\rd", "a\nb\tc\rd"),
        (r"\\n and \\\n", "\\n and \\\n"),
        (r"\"quoted\" and \'so\'", "\"quoted\" and 'so'"),
        (r"\x41\x0a\xe2\x82\xac", "A\n€"),
        (r"\x4 \xg1 \q \0", r"\x4 \xg1 \q \0"),  # no escapes of llama.cpp
        ("ends with \\", "ends with \\"),
        (r"ü\n日", "ü\n日"),
        (r"\xff", "\ufffd"),
        ("", ""),
    ],
)
def test_escapes_are_those_of_llama_cpp(text: str, meant: str) -> None:
    assert unescaped(text) == meant


def test_a_file_is_read_as_it_is(tmp_path: Path, stdin: Callable[[bytes | None], None]) -> None:
    path = tmp_path / "code.c"
    path.write_bytes(rb'puts("a\n");')
    stdin(None)
    assert whole_prompt("Explain:", [path]) == 'Explain:\n\nputs("a\\n");'
