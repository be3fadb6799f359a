"""Text that people hand to a command: prompts from arguments, files and pipes, and files of schemas and grammars.

It knows files and standard input; it does not know what the text is for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from vkllm.errors import InvalidParameter

MOST_BYTES = 16 << 20
"""Several times what the longest context holds, so that an endless pipe or a wrong file ends in a sentence."""
_ESCAPE = re.compile(rb"\\(x[0-9A-Fa-f]{2}|[nrt'\"\\])")
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def whole_prompt(prompt: str | None, files: Sequence[Path]) -> str | None:
    """The prompt with the files and piped standard input after it; None if there is none of them.

    Raises InvalidParameter for files that hold no text, and where all of it is empty.
    """
    is_piped = sys.stdin is not None and not sys.stdin.isatty()
    if prompt is None and not files and not is_piped and sys.stdin is not None:
        return None
    parts = [prompt or "", *(_trimmed(read_text(path)) for path in files if path != Path("-"))]
    if is_piped or (Path("-") in files and sys.stdin is not None):
        parts.append(_trimmed(_text(sys.stdin.buffer, "standard input")))
    text = "\n\n".join(part for part in parts if part)
    if not text.strip():
        if prompt is not None or files:
            raise InvalidParameter("the prompt is empty; write what is to be answered")
        raise InvalidParameter("there is no prompt: give one as an argument, with -f FILE, or on standard input")
    return text


def system_message(text: str | None, file: Path | None) -> str | None:
    """The system message, as text or in a file. Raises InvalidParameter, also if both are given."""
    if file is None:
        return text
    if text is not None:
        raise InvalidParameter("the system message is given twice, with -sys and with -sysf; give it once")
    return _trimmed(read_text(file))


def read_text(path: Path) -> str:
    """A file's text. Raises InvalidParameter if it cannot be read or is no text."""
    try:
        with path.open("rb") as file:
            return _text(file, str(path))
    except OSError as error:
        raise InvalidParameter(f"cannot read {path}: {error.strerror}") from error


def unescaped(text: str) -> str:
    """The text with the escapes that llama.cpp knows (\\n, \\r, \\t, \\', \\", \\\\ and \\x41) as what they stand for.

    \\x.. is a byte, so several of them may make a character of UTF-8; other backslashes stay as they are.
    """
    found = _ESCAPE.sub(lambda match: _character(match[1]), text.encode(errors="surrogateescape"))
    return found.decode(errors="replace")


def joined(words: Sequence[str] | None) -> str | None:
    """Words of a command line as one text, so that a short prompt needs no quotes; None if there are none."""
    return " ".join(words) if words else None


def _character(escape: bytes) -> bytes:
    return bytes.fromhex(escape[1:].decode()) if escape[:1] == b"x" else _ESCAPED.get(escape, escape)


def _text(file: BinaryIO, name: str) -> str:
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InvalidParameter(f"{name} has more than {MOST_BYTES >> 20} MiB, more than any context holds; give a part")
    if b"\0" in content:
        raise InvalidParameter(f"{name} is not text; give text in UTF-8")
    return content.decode(errors="replace").removeprefix("\ufeff")


def _trimmed(text: str) -> str:
    """Without empty lines around it; spaces before the first line stay, for they may mean something."""
    return text.strip("\r\n").rstrip()
