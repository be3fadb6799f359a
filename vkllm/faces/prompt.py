"""Text that people hand to a command: prompts from arguments, files and pipes, and files of schemas and grammars.

It knows files and standard input; it does not know what the text is for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from vkllm.errors import InvalidParameter

MOST_BYTES = 16 << 20
"""Several times what the longest context holds, so that an endless pipe or a wrong file ends in a sentence."""


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


def read_text(path: Path) -> str:
    """A file's text. Raises InvalidParameter if it cannot be read or is no text."""
    try:
        with path.open("rb") as file:
            return _text(file, str(path))
    except OSError as error:
        raise InvalidParameter(f"cannot read {path}: {error.strerror}") from error


def joined(words: Sequence[str] | None) -> str | None:
    """Words of a command line as one text, so that a short prompt needs no quotes; None if there are none."""
    return " ".join(words) if words else None


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
